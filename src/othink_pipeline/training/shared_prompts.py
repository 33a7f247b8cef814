"""TRL's GRPO, with each prompt computed once.

Stock TRL sends every prompt, pictures included, through the model once for each of its G
completions: to generate, for the reference, in the loss and in its gradient. Here each of these
reads it once. Sampled tokens, losses and gradients are those of stock TRL, up to rounding.

Legend: R rows (completions), C completion tokens (padded on the right).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from trl import GRPOTrainer
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import split_tensor_dict

from othink_pipeline.models.prompts import Prompt, base_of, collate
from othink_pipeline.models.sampling import Samples, sample
from othink_pipeline.training.packing import pack
from othink_pipeline.training.resume import Resumable
from othink_pipeline.training.sharing_check import find_fault

logger = logging.getLogger(__name__)


class SharedPromptTrainer(Resumable, GRPOTrainer):
    """GRPO on rows that bring their ``Prompt`` in the column ``encoded``.

    The rows of a group hold the same object, and keep it through TRL's shuffling and splitting.
    Before the first update the shared computation is compared with TRL's own; where they disagree
    or it is impossible, as it may be for a family of models that this was not made for, TRL's own
    is used and a warning says so. The metric ``shared_prompts`` says at every update which one it
    was: 1 or 0.

    Args:
        share_prompts: False computes each prompt G times, with TRL's own code.
    """

    _buffered_inputs: Any  # not typed where it is inherited from

    def __init__(self, *args: Any, share_prompts: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.share_prompts = share_prompts
        self._checked = not share_prompts
        self._prompts: Sequence[Prompt] = ()  # of the rows that TRL's methods are called with
        self._grouped: list[dict[str, Any]] | None = None

    def _own_state(self) -> dict[str, Any]:
        state = {
            **super()._own_state(),
            "step": self._step,
            "share_prompts": self.share_prompts,
        }
        spanned = self._step % (self.args.steps_per_generation * self.num_iterations)
        if spanned and self._buffered_inputs is not None:  # None: to be made anew in any case
            # Later updates learn from these completions, too. Their prompts come with the data.
            state["completions"] = [
                {name: value for name, value in batch.items() if name != "encoded"}
                for batch in self._buffered_inputs
            ]
        return state

    def _restore_own_state(self, state: dict[str, Any]) -> None:
        super()._restore_own_state(state)
        self._step = state["step"]
        self._checked = True
        self.share_prompts = self.share_prompts and state["share_prompts"]
        self._grouped = self._buffered_inputs = state.get("completions")

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        if self._buffered_inputs is not None:
            for batch in self._buffered_inputs:
                if "encoded" not in batch:  # restored: the data has come to the same rows again
                    places = batch["place"].tolist()
                    batch["encoded"] = [generation_batch[place]["encoded"] for place in places]
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is self._grouped:
            return inputs
        grouped = self._group(self._buffered_inputs)
        self._grouped = self._buffered_inputs = grouped
        step: int = self._step % self.args.steps_per_generation
        return grouped[step]

    def _group(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Bring the completions of a prompt together again, where the update is the same.

        TRL shuffles the rows of a generation batch and splits them into the micro-batches of an
        update, among which it makes no difference which row is in which. In the order in which the
        reference was computed, the same rows are also packed alike: where both have the same
        weights (not where the reference is bfloat16 and the policy float32) an untrained policy
        differs from it by nothing at all, and not by rounding, which Adam would blow up.
        """
        if self.loss_type == "bnpo":
            return batches  # it takes a mean over a micro-batch's tokens
        rows = _join(batches)
        order = rows["place"].argsort().tolist()
        grouped: list[dict[str, Any]] = split_tensor_dict(_pick(rows, order), len(batches))
        return grouped

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._prompts = [row["encoded"] for row in inputs]
        if not self._checked:
            self._check()
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        batch["encoded"] = self._prompts
        batch["place"] = torch.arange(len(self._prompts))  # before TRL shuffles
        return batch

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [prompt.ids.tolist() for prompt in self._prompts], None, {}

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, *options: Any, **named: Any
    ) -> tuple[list[list[int]], Any]:
        if self.use_vllm or self.sharded or not self.share_prompts:
            images = [list(prompt.images) for prompt in self._prompts]
            fields = self._fields(self._prompts)
            generate: Any = super()._generate_single_turn
            own: tuple[list[list[int]], Any] = generate(
                prompt_ids, images, fields, *options, **named
            )
            return own
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ) as model:
            return self.sample(model, self._prompts, self.args.max_completion_length).ids, None

    @property
    def sharded(self) -> bool:
        """Whether weights are shared out (FSDP, ZeRO-3).

        Then all processes must take the same steps: TRL's generation does.
        """
        return self.is_fsdp_enabled or DistributedBackend(self.accelerator).is_zero3

    def sample(self, model: Any, prompts: Sequence[Prompt], max_tokens: int) -> Samples:
        """Complete prompts as this training does, each read once."""
        return sample(
            model,
            prompts,
            max_tokens=max_tokens,
            eos_token_ids=self.eos_token_ids,
            pad_token_id=self._tokenizer.pad_token_id,
            temperature=self.temperature,
            suppressed=[model.config.image_token_id],
        )

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._prompts = inputs["encoded"]
        self._metrics["train"]["shared_prompts"].append(float(self.share_prompts))
        loss: torch.Tensor = super()._compute_loss(model, inputs)  # type: ignore[no-untyped-call]
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        rows = (self._prompts, input_ids, attention_mask, logits_to_keep)
        if not self.share_prompts or compute_aux_loss:
            return self.apart(model, *rows, batch_size, compute_entropy, compute_aux_loss)
        # TRL names a batch size where no gradient is taken, to bound the memory.
        size = batch_size or len(input_ids)
        parts = [
            self.shared(
                model,
                self._prompts[start : start + size],
                input_ids[start : start + size, -logits_to_keep:],
                attention_mask[start : start + size, -logits_to_keep:],
            )
            for start in range(0, len(input_ids), size)
        ]
        log_probs, entropies = zip(*parts, strict=True)
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    def shared(
        self, model: Any, prompts: Sequence[Prompt], ids: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probabilities and entropies of completions [R x C], no prompt computed twice."""
        unwrapped = self.accelerator.unwrap_model(model)
        packed = pack(unwrapped, prompts, ids, mask, self._tokenizer.pad_token_id)
        with self.accelerator.autocast():
            outputs = model(**packed.inputs, shift_labels=packed.labels, fused_lm_head=True)

        def unpacked(values: torch.Tensor) -> torch.Tensor:
            return values[0, packed.places].masked_fill(mask == 0, 0)

        # The reference model's head computes no entropies.
        entropies = None if outputs.entropy is None else unpacked(outputs.entropy)
        return unpacked(outputs.log_probs), entropies

    def apart(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The same from TRL's own code, which computes each row's prompt."""
        fields = self._fields(prompts)
        for name in prompts[0].token_fields:
            width = fields[name].shape[1]
            padding = (input_ids.shape[1] - logits_to_keep - width, logits_to_keep)
            fields[name] = F.pad(fields[name], padding)
        apart: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
        apart = super()._get_per_token_logps_and_entropies(
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size,
            compute_entropy,
            compute_aux_loss,
            num_images=[len(prompt.images) for prompt in prompts],
            **fields,
        )
        return apart

    def _fields(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        inputs = collate(prompts, self._tokenizer.pad_token_id, self.accelerator.device)
        del inputs["input_ids"], inputs["attention_mask"]
        return inputs

    def _check(self) -> None:
        """Compare with TRL's own computation, and give sharing up where they disagree."""
        self._checked = True
        fault = find_fault(self, self._prompts)
        # All processes take the same way.
        wrong = torch.tensor([float(fault is not None)], device=self.accelerator.device)
        if not self.accelerator.gather(wrong).any():
            return
        self.share_prompts = False
        logger.warning(
            "%s: prompts cannot be shared: %s. Every prompt is now computed for each completion "
            "apart, as in stock TRL: right, but slower. compute.share_prompts: false skips this "
            "test.",
            type(base_of(self.accelerator.unwrap_model(self.model))).__name__,
            fault or "another process found it so",
        )


def _join(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Micro-batches as one batch; a scalar is the same in all of them."""
    joined: dict[str, Any] = {}
    for name, first in batches[0].items():
        parts = [batch[name] for batch in batches]
        if isinstance(first, list):
            joined[name] = [row for part in parts for row in part]
        elif isinstance(first, torch.Tensor) and first.ndim:
            joined[name] = torch.cat(parts)
        else:
            joined[name] = first
    return joined


def _pick(batch: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Some rows of a batch, in that order."""
    picked: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, list):
            picked[name] = [value[row] for row in rows]
        elif isinstance(value, torch.Tensor) and value.ndim:
            picked[name] = value[list(rows)]
        else:
            picked[name] = value
    return picked
