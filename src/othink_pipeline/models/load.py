"""Load, save and run vision-language models."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from copy import deepcopy
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import transformers
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers import AutoModelForImageTextToText, AutoProcessor

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.models.pixels import limit_pixels
from othink_pipeline.models.prompts import base_of, encode
from othink_pipeline.models.sampling import sample

if TYPE_CHECKING:
    from datasets import Dataset

    from othink_pipeline.models.parameters import ModelSettings

logger = logging.getLogger(__name__)
transformers.utils.logging.disable_progress_bar()  # the log says what happens, a line a step


_largest_batch: dict[str, int] = {}
"""Device -> the most completions that fit its memory at a time, once more have been tried. Kept for
all that the process evaluates: to run out of memory again and again takes longer than small
batches."""


class Completion(NamedTuple):
    """One generated answer: its text without special tokens, and its length in tokens."""

    text: str
    tokens: int


def release_memory() -> None:
    """Give back what models have left on the GPU: a trainer and its callbacks hold each other."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def load_model(
    path: str, settings: ModelSettings | None = None, base_path: str | None = None
) -> tuple[Any, Any]:
    """A model on the best device there is and its processor, in evaluation mode.

    Only safetensors are read and no code from the checkpoint is run.

    Args:
        path: folder of a model, or of adapters alone.
        settings: None takes everything as the model's files say.
        base_path: the model that adapters were trained on; not needed for a whole model.

    Raises:
        ConfigurationError: no model there, or one that does not load.
    """
    if not Path(path).is_dir():
        raise ConfigurationError(f"model {path}: no such folder")
    release_memory()
    whole = path
    if adapted := (Path(path) / CONFIG_NAME).is_file():
        if base_path is None:
            raise ConfigurationError(f"model {path}: adapters, and no base model to put them on")
        if not (Path(path) / SAFETENSORS_WEIGHTS_NAME).is_file():
            raise ConfigurationError(
                f"model {path}: adapters without {SAFETENSORS_WEIGHTS_NAME}; no other file of "
                "weights is read"
            )
        whole = base_path
    # Left unsaid, transformers asks on the terminal whether to run a checkpoint's own code.
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(path, **options)
        if settings:
            options |= {"dtype": settings.dtype, "attn_implementation": settings.attention}
        model: Any = AutoModelForImageTextToText.from_pretrained(
            whole, use_safetensors=True, **options
        )
        if adapted:
            model = PeftModel.from_pretrained(model, path, local_files_only=True)
    except Exception as error:  # transformers raises whatever its many readers raise
        raise ConfigurationError(f"model {path} does not load: {error}") from error
    if settings:
        limit_pixels(processor, settings.min_pixels, settings.max_pixels)
    processor.tokenizer.padding_side = "left"
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor


def save_model(
    model: Any,
    processor: Any,
    folder: Path,
    dtype: torch.dtype | None = None,
    merge: bool = True,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model and processor as a Hugging Face model folder.

    Args:
        dtype: of the weights in the files; None leaves each as it is. Adapters stay as they are.
        merge: write a model with adapters as a whole one; False: the adapters alone. The model
            itself is left as it is in either case.
        state: the weights by their names in ``model``, where it does not hold them whole itself.
    """
    if isinstance(model, PeftModel) and not merge:
        model.save_pretrained(str(folder), state_dict=state)
    else:
        base = base_of(model)
        if state is None:
            state = _whole_state(base, dtype)
        elif isinstance(model, PeftModel):
            raise ConfigurationError(
                "lora.merge = True with weights that FSDP shares out: set lora.merge: false, or "
                "take another compute.launcher."
            )
        elif dtype is not None:
            kept = {id(weight): weight.to(dtype) for weight in state.values()}  # tied ones stay so
            state = {name: kept[id(weight)] for name, weight in state.items()}
        base.save_pretrained(folder, state_dict=state)
        if dtype is not None:  # there stands that of the weights in memory
            config = deepcopy(base.config)
            config.dtype = dtype
            config.save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.no_grad()
def _whole_state(base: Any, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """The weights by the names of a model without adapters, these added to the layers' own."""
    adapted = {
        f"{name}.weight": cast(Any, layer)
        for name, layer in base.named_modules()
        if isinstance(layer, LoraLayer)
    }
    state: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}  # of tied weights one
    for full_name, weight in base.state_dict(keep_vars=True).items():
        if ".lora_" in full_name:
            continue
        name = full_name.replace(".base_layer.", ".")
        if id(weight) not in copies:
            value = weight.detach()
            if layer := adapted.get(name):
                value = value.float() + layer.get_delta_weight(layer.active_adapters[0]).float()
            if value.is_floating_point():
                value = value.to(dtype or weight.dtype)
            copies[id(weight)] = value
        state[name] = copies[id(weight)]
    return state


def user_message(prompt: str, question: str) -> str:
    """The text of the one user message, which follows the image."""
    return prompt.replace("{question}", question)


def render_prompt(processor: Any, prompt: str, question: str) -> str:
    """The whole prompt as the model's own chat template writes it: image, question, answer's start.

    The conversation is one user message. Some templates put a system message before it on their
    own, as those of Qwen2-VL and Qwen2.5-VL do: it stays, in training and tests alike.
    """
    content = [{"type": "image"}, {"type": "text", "text": user_message(prompt, question)}]
    rendered: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return rendered


@torch.inference_mode()
def complete(
    model: Any,
    processor: Any,
    examples: Dataset,
    *,
    prompt: str,
    batch_size: int,
    max_completion_tokens: int,
    think: bool | None = None,
    temperature: float | None = None,
    samples: int = 1,
    images: Dataset | None = None,
) -> list[Completion]:
    """Complete each of ``examples``, in their order; the samples of one stand side by side.

    Of the checkpoint's generation settings only its end tokens are used: penalties and the like
    would make answers to one question depend on more than the weights.

    Args:
        model, processor: as ``load_model`` returns them.
        examples: with columns ``question`` and ``image``.
        prompt: template with ``{question}``.
        batch_size: the most completions at a time, but never fewer than one example's; halved for
            good when they do not fit the memory.
        think: None lets the model choose; False forces an empty think block, True a worked one.
            The forced opening counts as part of the completion.
        temperature: None decodes greedily; above 0 samples from torch's global generator.
        samples: completions of each example, which is read once for all of them.
        images: whose column ``image`` the pictures come from, row for row; None: ``examples``.

    Returns:
        ``samples`` completions of the first example, then of the second, and so on.
    """
    opening = {None: "", True: "<think>", False: "<think></think>"}[think]
    tokenizer = processor.tokenizer
    banned = [tokenizer.convert_tokens_to_ids("</think>")] if think else []
    opening_tokens = len(tokenizer(opening)["input_ids"])
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    was_training = model.training
    model.eval()
    completions: list[Completion] = []
    # Prompts of similar length share a batch, so that little of it is padding.
    questions: Sequence[str] = examples["question"][:]
    order = sorted(range(len(examples)), key=lambda i: (len(questions[i]), i))
    device = model.device.type
    pictures = examples if images is None else images
    while left := order[len(completions) // samples :]:
        size = max(1, min(batch_size, _largest_batch.get(device, batch_size)) // samples)
        rows = left[:size]
        texts = [render_prompt(processor, prompt, questions[row]) + opening for row in rows]
        try:
            prompts = encode(
                processor, texts, [[image] for image in pictures.select(rows)["image"]]
            )
            generated = sample(
                model,
                [prompt for prompt in prompts for _ in range(samples)],
                max_tokens=max_completion_tokens - opening_tokens,
                eos_token_ids=ends if isinstance(ends, list) else [ends],
                pad_token_id=tokenizer.pad_token_id,
                temperature=temperature,
                suppressed_first=banned,
            ).ids
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
            tried = len(rows) * samples
            _largest_batch[device] = tried // 2
            logger.warning(
                "%d completions at a time do not fit the memory: %d from now on", tried, tried // 2
            )
            continue
        texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
        completions += [
            Completion(opening + text, opening_tokens + len(ids))
            for text, ids in zip(texts, generated, strict=True)
        ]
    model.train(was_training)
    places = [row for row in order for _ in range(samples)]
    restored = sorted(zip(places, completions, strict=True), key=itemgetter(0))
    return [completion for _, completion in restored]
