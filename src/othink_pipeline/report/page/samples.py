"""A few test examples that show what changed, chosen by rule and not by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.matrix import sort_methods

Role = tuple[str, str]
"""(train_task, method)"""


class Rule(NamedTuple):
    """Who must be right and who wrong: ``base``, ``method``, ``rival`` or ``specialist``.

    A specialist is the method trained on the task that is tested.
    """

    title: str
    crosses: bool
    """Tested on another task than the method was trained on."""
    right: str
    wrong: str


RULES = (
    Rule("Learnt", False, "method", "base"),
    Rule("Unlearnt", False, "base", "method"),
    Rule("Ahead", False, "method", "rival"),
    Rule("Behind", False, "rival", "method"),
    Rule("Transferred", True, "method", "base"),
    Rule("Not transferred", True, "specialist", "method"),
)


class Sample(NamedTuple):
    """A test example that meets a rule."""

    rule: Rule
    right: Role
    wrong: Role
    eval_task: str
    example_id: str
    """The first one that meets it."""
    found: int
    """How many do."""
    tested: int
    """Of how many that both have answered."""
    answers: pd.DataFrame
    """The predictions on it: of the base model, of all that were trained on the method's task and
    of the specialist."""


def choose_samples(
    predictions: pd.DataFrame, methods: Sequence[str], comparisons: Sequence[tuple[str, str]]
) -> list[Sample]:
    """For each rule the first test example that meets it, on the tasks in turn.

    All answers are of one seed, the first that both models of the rule have, and of the base model
    that this seed started from.

    The method and its rival are the last of ``comparisons`` of which both were trained; without
    one the last method, without a rival.

    Args:
        predictions: as for :func:`transfer_matrix`.
        methods: the order of the grid's methods.
        comparisons: (method, baseline) pairs.
    """
    trained = [name for name in sort_methods(predictions["method"], methods) if name != BASE]
    pairs = [pair for pair in comparisons if set(pair) <= set(trained)]
    if not trained:
        return []
    method, rival = pairs[-1] if pairs else (trained[-1], "")
    found = []
    for number, rule in enumerate(RULES):
        places = _places(predictions, method, rule.crosses)
        turn = number % len(places) if places else 0
        for train_task, eval_task in [*places[turn:], *places[:turn]]:
            roles = {
                "base": ("none", BASE),
                "method": (train_task, method),
                "rival": (train_task, rival),
                "specialist": (eval_task, method),
            }
            sample = _find(predictions[predictions["eval_task"] == eval_task], rule, roles)
            if sample is not None:
                found.append(sample)
                break
    return found


def _places(predictions: pd.DataFrame, method: str, crosses: bool) -> list[Role]:
    """(train_task, eval_task) of the method's tests, own tasks or others."""
    cells = predictions.loc[predictions["method"] == method, ["train_task", "eval_task"]]
    pairs = sorted(set(cells.itertuples(index=False, name=None)))
    return [(trained, tested) for trained, tested in pairs if (trained != tested) == crosses]


def _find(tested: pd.DataFrame, rule: Rule, roles: dict[str, Role]) -> Sample | None:
    """The sample of a rule among the predictions on one task; None where there is none."""
    of_model = dict(iter(tested.groupby(["train_task", "method"], sort=False)))
    right, wrong = roles[rule.right], roles[rule.wrong]
    if right not in of_model or wrong not in of_model:
        return None
    beside = "base_model" if BASE in (right[1], wrong[1]) else "seed"
    both = of_model[right].merge(
        of_model[wrong], on=[beside, "example_id"], suffixes=("", "_other")
    )
    if both.empty:
        return None
    trained = both["seed"].fillna(both["seed_other"]) if beside == "base_model" else both["seed"]
    both, seed = both[trained == trained.min()], trained.min()
    base_model = both["base_model"].iloc[0]
    meets = both[both["correct"] & ~both["correct_other"]]
    if meets.empty:
        return None
    example_id = str(meets["example_id"].iloc[0])
    is_seed = (tested["seed"] == seed).fillna(False)
    is_base = (tested["method"] == BASE) & (tested["base_model"] == base_model)
    answers = tested[(tested["example_id"] == example_id) & (is_seed | is_base)]
    shown = answers["train_task"].isin(["none", roles["method"][0]])
    if rule.right == "specialist":
        shown |= (answers["train_task"] == right[0]) & (answers["method"] == right[1])
    return Sample(
        rule=rule,
        right=right,
        wrong=wrong,
        eval_task=str(answers["eval_task"].iloc[0]),
        example_id=example_id,
        found=len(meets),
        tested=len(both),
        answers=answers[shown],
    )
