"""A training that was killed goes on from its last checkpoint as if nothing had happened.

With the same number of processes, and on a CPU, it ends with the bits of an uninterrupted one.
Nothing in a checkpoint is trusted: what is read back is JSON, safetensors, or tensors and numbers
that ``torch.load`` reads with ``weights_only=True``. Sharded weights (FSDP, DeepSpeed) are the
exception: those libraries read pickles of their own, from folders whose digest was compared.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import MANIFEST, digest_folder, publish, read_json, write_json

logger = logging.getLogger(__name__)

KEPT = 2
"""How many checkpoints stay: should the newest be damaged, there is the one before."""


class Part(Protocol):
    """Something beside the trainer that changes in a training."""

    def state(self) -> dict[str, Any]:
        """All that changes, fit for JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""


class Resumable(Trainer):
    """A TRL trainer's checkpoints: whole or not there, and with all that decides what comes next.

    Mixed in before TRL's trainer. A subclass adds what else it holds to ``_own_state``.

    Attributes:
        parts: what else is saved and restored, by name; the same on all processes.
    """

    PARTS_FILE = "parts.json"

    # Typed too narrowly, or not at all, where they are inherited from.
    args: Any
    model: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.parts: dict[str, Part] = {}
        super().__init__(*args, **kwargs)

    def _own_state(self) -> dict[str, Any]:
        """What this process holds and Transformers does not save: plain values and tensors."""
        return {}

    def _restore_own_state(self, state: dict[str, Any]) -> None:
        """Take over what ``_own_state`` said."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save all that the next update depends on; after the last one there is none.

        Raises:
            ValueError: updates that were not logged yet, whose metrics would be lost.
        """
        update = self.state.global_step
        if update >= self.state.max_steps:
            return
        if self._globalstep_last_logged != update:
            raise ValueError("save_steps must be a multiple of logging_steps")
        self.store_flos()
        folder = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{update}")
        with publish(folder) if self.args.should_save else nullcontext(folder) as target:
            # The main process has made the folder when the others hear of it.
            scratch = Path(broadcast_object_list([str(target)])[0])
            self._write_state(scratch)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_json(scratch / MANIFEST, {"digest": digest_folder(scratch)})
        if self.args.should_save:
            _keep(folder)

    def _write_state(self, folder: Path) -> None:
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            # These keep their weights beside the optimizer's state, in a form of their own.
            self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        torch.save(self._own_state(), folder / self._own_file)
        if self.args.should_save:
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nobody needs
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            parts = {name: part.state() for name, part in self.parts.items()}
            (folder / self.PARTS_FILE).write_text(json.dumps(parts))

    @property
    def _own_file(self) -> str:
        return f"process_{self.args.process_index}.pt"

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        begun: tuple[int, int] = super()._init_training_state(max_steps, *args, **kwargs)
        # How often to save is for this run to say, not for the one that was killed.
        self.state.compute_steps(self.args, max_steps)
        return begun

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load weights by the names that they were saved under.

        Transformers saves Qwen2-VL's under the names of the hub's checkpoints, and on resuming
        looks for those of the module: it finds none, warns, and goes on from the base model.
        """
        model = model or self.model
        if self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            # Saved as the module names them; of an adapter PEFT knows the names.
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(model).from_pretrained(
            resume_from_checkpoint,
            dtype=torch.float32,  # holds every weight as it was: they may be of several types
            local_files_only=True,
            use_safetensors=True,
        )
        model.load_state_dict(saved.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore everything but weights and random streams.

        Raises:
            ConfigurationError: a checkpoint with code in it.
        """
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        saved = json.loads((folder / self.PARTS_FILE).read_text())
        with _only_data(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            # Which of its machine's GPUs a process had is no matter of the training.
            device = self.args.device  # of several processes on a CPU "cpu:0", which is none
            place = "cpu" if device.type == "cpu" else device
            own = torch.load(folder / self._own_file, map_location=place, weights_only=True)
        self._restore_own_state(own)
        for name, part in self.parts.items():
            part.restore(saved[name])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _only_data(checkpoint):
            super()._load_rng_state(checkpoint)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder`` whose files are those that were saved; None without one.

    What a killed process left half written or half deleted is swept.
    """
    for leftover in folder.glob(f".{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for checkpoint in _newest_first(folder):
        saved = read_json(checkpoint / MANIFEST)
        if saved is not None and saved.get("digest") == digest_folder(checkpoint):
            return checkpoint
        logger.warning(
            "%s: not as it was saved. The training goes on from the checkpoint before, if any.",
            checkpoint,
        )
    return None


def update_of(checkpoint: Path) -> int:
    """The update after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=update_of, reverse=True)


def _keep(newest: Path) -> None:
    """Delete all checkpoints but ``newest`` and those just before it.

    Later ones are damaged: the training would have gone on from them.
    """
    others = _newest_first(newest.parent)
    kept = others[others.index(newest) :][:KEPT]
    for checkpoint in set(others) - set(kept):
        # Under this name it is never taken for a checkpoint that was damaged.
        doomed = checkpoint.with_name(f".{checkpoint.name}.old")
        os.replace(checkpoint, doomed)
        shutil.rmtree(doomed)


@contextmanager
def _only_data(checkpoint: str | None) -> Iterator[None]:
    """Say what it means that ``torch.load`` refuses a file.

    Raises:
        ConfigurationError: a file holds more than tensors and numbers.
    """
    try:
        yield
    except UnpicklingError as error:
        raise ConfigurationError(
            f"{checkpoint}: a file there holds more than tensors and numbers, as no checkpoint of "
            f"a training does; nothing in it was run. Delete the folder to go on without it. "
            f"({error})"
        ) from error
