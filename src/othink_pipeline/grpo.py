"""TRL's GRPO, each prompt computed once.

In stock TRL every prompt goes through the model, image included, once for each of its G
completions: to generate, for the reference, in the loss and in its gradient. Here it goes through
once each time. Losses, gradients and sampled tokens are those of stock TRL.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from othink_pipeline.packing import pack
from othink_pipeline.prompts import Prompt, collate
from othink_pipeline.sampling import sample

logger = logging.getLogger(__name__)


class SharedPromptTrainer(GRPOTrainer):
    """GRPO on rows that bring their ``Prompt`` in the column ``encoded``.

    The rows of a group hold the same object. They keep it through TRL's shuffling and splitting.

    Args:
        share_prompts: False computes every prompt G times, through TRL's own code.
    """

    def __init__(self, *args: Any, share_prompts: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.share_prompts = share_prompts
        self._prompts: Sequence[Prompt] = ()  # of the rows at hand

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._prompts = [row["encoded"] for row in inputs]
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        batch["encoded"] = self._prompts
        return batch

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [prompt.ids.tolist() for prompt in self._prompts], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, fields: Any, num_generations: int
    ) -> tuple[list[list[int]], Any]:
        if self.use_vllm or not self.share_prompts:
            images = [list(prompt.images) for prompt in self._prompts]
            fields = self._stock_fields(self._prompts)
            return super()._generate_single_turn(prompt_ids, images, fields, num_generations)
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
        ):
            completions = sample(
                model,
                self._prompts,
                max_tokens=self.max_completion_length,
                eos_token_ids=self.eos_token_ids,
                pad_token_id=self._tokenizer.pad_token_id,
                temperature=self.temperature,
                suppressed=[self.model.config.image_token_id],
            )
        return completions, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._prompts = inputs["encoded"]
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **ignored: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Log-probabilities and entropies of completion tokens [R x C]; no prompt is read twice."""
        chunk = batch_size or len(input_ids)
        parts = []
        for start in range(0, len(input_ids), chunk):
            rows = slice(start, start + chunk)
            parts.append(
                self._shared(
                    model,
                    self._prompts[rows],
                    input_ids[rows, -logits_to_keep:],
                    attention_mask[rows, -logits_to_keep:],
                )
            )
        log_probs, entropies = zip(*parts, strict=True)
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    def _shared(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        completion_ids: torch.Tensor,
        completion_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        packed = pack(model, prompts, completion_ids, completion_mask, self._tokenizer.pad_token_id)
        with self.accelerator.autocast():
            outputs = model(**packed.inputs, shift_labels=packed.labels, fused_lm_head=True)
        padding = completion_mask == 0

        def unpacked(values: torch.Tensor | None) -> torch.Tensor | None:
            if values is None:
                return None
            return values[packed.rows, packed.columns].masked_fill(padding, 0)

        return unpacked(outputs.log_probs), unpacked(outputs.entropy)

    def _stock_fields(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        inputs = collate(prompts, self._tokenizer.pad_token_id, self.accelerator.device)
        return {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
