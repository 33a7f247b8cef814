"""Supervised fine-tuning of one cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trl import SFTConfig, SFTTrainer

from othink_pipeline.training.guard import Guarded
from othink_pipeline.training.loop import Job, trainer_settings
from othink_pipeline.training.resume import Resumable
from othink_pipeline.training.rows import sft_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig
    from transformers import TrainerCallback

    from othink_pipeline.training.health import Report


class ResumableSFTTrainer(Resumable, SFTTrainer):
    """TRL's supervised fine-tuning, which also goes on counting tokens where it was killed."""

    def _own_state(self) -> dict[str, Any]:
        return {**super()._own_state(), "tokens": self._total_train_tokens}

    def _restore_own_state(self, state: dict[str, Any]) -> None:
        super()._restore_own_state(state)
        self._total_train_tokens = state["tokens"]


class GuardedSFTTrainer(Guarded, ResumableSFTTrainer):
    """Supervised fine-tuning that goes on where it was killed, guarded against bad numbers."""


def make_rows(examples: Dataset, job: Job, processor: Any) -> Dataset:
    """See ``rows.sft_rows``."""
    return sft_rows(examples, job.prompt, job.parameters, job.answers)


def build_trainer(
    model: Any,
    processor: Any,
    rows: Dataset,
    job: Job,
    adapters: PeftConfig | None,
    report: Report,
    callbacks: list[TrainerCallback],
) -> GuardedSFTTrainer:
    """An SFT trainer that takes ``rows`` in their order, with the loss on the completion alone."""
    config = SFTConfig(
        **trainer_settings(job),
        completion_only_loss=True,
        max_length=None,  # TRL's default cuts long examples without a word
        train_sampling_strategy="sequential",
    )
    return GuardedSFTTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=processor,
        callbacks=callbacks,
        peft_config=adapters,
        health=job.health,
        report=report,
    )


def completion_tokens(rows: Dataset, job: Job, processor: Any, mean_tokens: float) -> int:
    """Tokens of all targets: the loss skips what comes before them."""
    targets = [row[0]["content"] for row in rows["completion"]]
    # Each ends with the chat template's end of turn and line feed, which TRL trains on as well.
    tokens = processor.tokenizer(targets, add_special_tokens=False)["input_ids"]
    return sum(len(ids) + 2 for ids in tokens)
