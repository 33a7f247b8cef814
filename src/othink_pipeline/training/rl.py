"""Reinforcement learning of one cell, the KL weight of every update under our control.

The KL weight is set before each loss instead of once; all else is TRL's, by TRL's own names.
"""

from __future__ import annotations

from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any

from trl import GRPOConfig

from othink_pipeline.training.dynamic_kl import DynamicKLTrainer
from othink_pipeline.training.guard_rl import GuardedRL
from othink_pipeline.training.kl import FLOOR
from othink_pipeline.training.loop import Job, trainer_settings
from othink_pipeline.training.rewards import ACCURACY_REWARDS, format_reward
from othink_pipeline.training.rows import rl_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig
    from transformers import TrainerCallback

    from othink_pipeline.models.parameters import Compute
    from othink_pipeline.training.health import Report
    from othink_pipeline.training.parameters import RL


class GuardedGRPOTrainer(GuardedRL, DynamicKLTrainer):
    """GRPO with a dynamic KL weight, guarded against numbers that go wrong."""


def make_rows(examples: Dataset, job: Job, processor: Any) -> Dataset:
    """See ``rows.rl_rows``."""
    return rl_rows(examples, job.prompt, processor)


def build_trainer(
    model: Any,
    processor: Any,
    rows: Dataset,
    job: Job,
    adapters: PeftConfig | None,
    report: Report,
    callbacks: list[TrainerCallback],
) -> GuardedGRPOTrainer:
    """A GRPO trainer that takes ``rl_rows`` in their order, ``prompts_per_update`` at a time."""
    parameters: RL = job.parameters
    accuracy = ACCURACY_REWARDS[parameters.rewards.answer]
    config = GRPOConfig(
        **trainer_settings(job),
        **_generation_settings(job.compute),
        num_generations=parameters.completions_per_prompt,
        max_completion_length=parameters.max_completion_tokens,
        temperature=parameters.temperature,
        beta=FLOOR,  # above 0, so that the reference is loaded; set anew before every loss
        loss_type=parameters.loss_type,
        scale_rewards=parameters.scale_rewards,
        num_iterations=parameters.num_iterations,
        epsilon=parameters.epsilon,
        epsilon_high=parameters.epsilon_high,
        importance_sampling_level=parameters.importance_sampling_level,
        use_bias_correction_kl=parameters.unbiased_kl,
        sync_ref_model=parameters.sync_ref_model,
        ref_model_sync_steps=parameters.ref_model_sync_steps,
        ref_model_mixup_alpha=parameters.ref_model_mixup_alpha,
        reward_weights=[parameters.rewards.accuracy, parameters.rewards.format],
        shuffle_dataset=False,
    )
    return GuardedGRPOTrainer(
        model=model,
        # TRL logs it under its name.
        reward_funcs=[update_wrapper(partial(accuracy, kind=job.answers), accuracy), format_reward],
        args=config,
        train_dataset=rows,
        processing_class=processor,
        callbacks=callbacks,
        kl=parameters.kl,
        kl_estimator=parameters.kl_estimator,
        share_prompts=job.compute.share_prompts,
        peft_config=adapters,
        health=job.health,
        report=report,
    )


def _generation_settings(compute: Compute) -> dict[str, Any]:
    """TRL's settings of who generates the completions."""
    if compute.vllm is None:
        return {}
    if compute.vllm.mode == "server":
        where = {"vllm_server_host": compute.vllm.host, "vllm_server_port": compute.vllm.port}
    else:
        where = {"vllm_gpu_memory_utilization": compute.vllm.gpu_memory}
    return {"use_vllm": True, "vllm_mode": compute.vllm.mode, **where}


def completion_tokens(rows: Dataset, job: Job, processor: Any, mean_tokens: float) -> int:
    """Tokens of all completions."""
    parameters: RL = job.parameters
    return round(mean_tokens * parameters.prompts_per_update * parameters.completions_per_prompt)
