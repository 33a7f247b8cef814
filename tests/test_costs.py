"""What a grid takes, by hand: tokens, operations, seconds on a device of known speed."""

from typing import Any

import pytest
from test_memory import SHAPE, adapters, compute, evaluation, plan

from othink_pipeline import costs
from othink_pipeline.costs import Cost, Grid, Model, Speed
from othink_pipeline.launchers import Sharing
from othink_pipeline.memory import Layout
from othink_pipeline.needs import Lengths
from othink_pipeline.weights import Weights

SHAPES = {
    "model.visual.a.weight": (10, 20),
    "model.embed_tokens.weight": (100, 8),
    "model.b.weight": (30, 100),
}
MODEL = Model(Weights(4000, 16_000, SHAPES), SHAPE, Lengths(30, 5, {"sft": 40}))
SPEED = Speed(flops=1e9, bytes=1e9)
GRID = Grid(tasks=2, seeds=3, base_models=2, test_examples=50, seconds={})


def test_the_output_layer_may_be_the_embeddings() -> None:
    assert (MODEL.body, MODEL.head) == (3000, 800)
    own = {**SHAPES, "lm_head.weight": (100, 8)}
    untied = MODEL._replace(weights=Weights(4800, 0, own))
    assert (untied.body, untied.head) == (3000, 800)


def test_two_operations_for_each_weight_and_token() -> None:
    layout = Layout(rows=2, length=50, pictures=2, judged=60, packed=True)
    attention = 4 * 2 * 16 * 2 * 50**2
    assert costs.text_flops(MODEL, layout) == 2 * (3000 * 100 + 800 * 60) + attention
    assert costs.vision_flops(MODEL, 2) == 2 * (2 * 200 * 20 + 4 * 3 * 6 * 20**2)


def test_the_backward_pass_takes_the_gradients_of_what_is_trained() -> None:
    layout = Layout(1, 30, 1, 20, packed=False)
    text, vision = costs.text_flops(MODEL, layout), costs.vision_flops(MODEL, 1)

    def flops(checkpointing: bool = False, **changes: Any) -> float:
        made = plan(**changes)._replace(compute=compute(gradient_checkpointing=checkpointing))
        return costs.training_flops(MODEL, made, layout)

    assert flops() == 3 * text + 3 * vision
    assert flops(checkpointing=True) == 4 * text + 4 * vision
    assert flops(lora=adapters().model_dump()) == 2 * text + 2 * vision
    assert flops(freeze_vision=True) == 3 * text + vision


def test_a_generation_reads_the_weights_and_the_cache_at_every_step() -> None:
    cost = costs.generation_cost(MODEL, SPEED, rows=8, prompts=2, most=10, number_bytes=4)
    read = Layout(2, 30, 2, 8, packed=False)
    flops = costs.text_flops(MODEL, read) + costs.vision_flops(MODEL, 2) + 2 * 80 * 3800
    moved = 4 * (3800 + 8 * 35 * 2 * 4 * 2)
    seconds = flops / (costs.EFFICIENCY * 1e9) + 10 * (2 * costs.LAYER_STEP_S + moved / 1e9)
    assert cost[:3] == (60, 80, flops)
    assert cost.seconds == pytest.approx(seconds)


def test_an_update_of_rl_reads_prompts_to_generate_to_compare_and_to_learn() -> None:
    shared = costs.update_cost(plan(), MODEL, SPEED)
    assert shared.prompt_tokens == 3 * 16 * 30
    assert shared.completion_tokens == 128 * 72
    apart = plan()._replace(compute=compute(share_prompts=False))
    assert costs.update_cost(apart, MODEL, SPEED).prompt_tokens == 8 * shared.prompt_tokens
    layout = Layout(16, 30 + 8 * 72, 16, 128 * 72, packed=True)
    passes = 4 * (costs.text_flops(MODEL, layout) + costs.vision_flops(MODEL, 16))
    made = costs.generation_cost(MODEL, SPEED, 128, 16, 72, 4)
    assert shared.flops == passes + made.flops
    seconds = passes / (costs.EFFICIENCY * SPEED.flops) + made.seconds
    assert shared.seconds == pytest.approx(seconds)


def test_an_update_of_sft_makes_no_completions() -> None:
    cost = costs.update_cost(plan("sft"), MODEL, SPEED)
    assert (cost.prompt_tokens, cost.completion_tokens) == (16 * 40, 0)
    assert cost.seconds == pytest.approx(cost.flops / (costs.EFFICIENCY * SPEED.flops))


def test_two_processes_do_the_same_in_half_the_time() -> None:
    alone = costs.update_cost(plan("sft"), MODEL, SPEED)
    both = plan("sft", sharing=Sharing("data", 2))._replace(compute=compute(num_processes=2))
    cost = costs.update_cost(both, MODEL, SPEED)
    assert cost[:3] == alone[:3]
    assert cost.seconds == alone.seconds / 2


def test_tests_grow_with_the_samples() -> None:
    settings = evaluation(batch_size=10)
    one = costs.evaluation_cost(MODEL, SPEED, settings, 50, 4)
    batch = costs.generation_cost(MODEL, SPEED, 10, 10, 72, 4)
    assert one == Cost(*(5 * value for value in batch))
    sampled = evaluation(batch_size=10, samples=2)
    tripled = [pytest.approx(3 * value) for value in one]
    assert list(costs.evaluation_cost(MODEL, SPEED, sampled, 50, 4)) == tripled


def rows(**changes: Any) -> dict[str, str]:
    plans = {"sft": plan("sft", updates=10), "grpo": plan(updates=10)}
    made = costs.estimate(MODEL, plans, evaluation(), GRID._replace(**changes), SPEED)
    assert {row.outcome for row in made} == {"note"}
    return {row.check: row.detail for row in made}


def test_measured_seconds_are_taken_where_there_are_any() -> None:
    found = rows(seconds={"rl": 600.0})
    assert found["cost of grpo"].startswith("6 cells: training about 10.0 h")
    assert "measured: 6e+02 s an update" in found["cost of grpo"]
    assert "estimated from the device's speed" in found["cost of sft"]
    assert found["cost of the grid"].startswith("about 10.")
    assert "measured" not in rows()["cost of grpo"]


def test_the_grid_counts_every_cell_every_checkpoint_and_the_base_models() -> None:
    update = [costs.update_cost(plan(name), MODEL, SPEED) for name in ("sft", "grpo")]
    validation = costs.evaluation_cost(MODEL, SPEED, evaluation(), 2 * 200, 4)
    tests = costs.evaluation_cost(MODEL, SPEED, evaluation(), 2 * 50, 4)
    flops = 6 * 10 * sum(cost.flops for cost in update)
    flops += 2 * 6 * 2 * validation.flops  # of update 0 and of the last
    flops += (2 * 6 + 2) * tests.flops
    assert f"{flops:.2g} FLOP" in rows()["cost of the grid"]
    written = 6 * 10 * 128 * 72 + 2 * 6 * 2 * 400 * 72 + (2 * 6 + 2) * 10_000 * 72
    many = rows(test_examples=5000)["cost of the grid"]
    assert f"{written / 1e6:.3g} M completion tokens" in many
    assert "tests on 2 tasks x 50 examples" in rows()["cost of grpo"]


def test_durations_are_said_in_the_unit_that_suits() -> None:
    assert [costs.duration(s) for s in (45, 720, 12_600)] == ["45 s", "12 min", "3.5 h"]
