"""GRPO whose reference may follow the policy, saved and restored with all else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model

from othink_pipeline.training.shared_prompts import SharedPromptTrainer

REFERENCE_FILE = "reference.safetensors"


class MovingReferenceTrainer(SharedPromptTrainer):
    """GRPO with TRL's ``sync_ref_model``: a reference that is no longer the base model.

    After every ``ref_model_sync_steps`` updates each of its weights becomes ``(1 - alpha)
    reference + alpha policy``, alpha being ``ref_model_mixup_alpha`` (TR-DPO, arXiv 2404.09656); 1
    resets it to the policy. TRL does that, and loses it when a training goes on: here it is in the
    checkpoints. Not with FSDP or DeepSpeed, which ``check_launcher`` sees to.
    """

    ref_model: Any  # typed too narrowly where it is inherited from

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.sync_ref_model:
            # As trained weights are: a bfloat16 hardly moves by what a policy moves.
            self.ref_model.float()

    def _write_state(self, folder: Path) -> None:
        super()._write_state(folder)
        if self.args.sync_ref_model and self.args.should_save:
            save_model(self.ref_model, str(folder / REFERENCE_FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.args.sync_ref_model:
            load_model(self.ref_model, Path(resume_from_checkpoint, REFERENCE_FILE))
