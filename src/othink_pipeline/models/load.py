"""Load and save vision-language models."""

from __future__ import annotations

import gc
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers import AutoModelForImageTextToText, AutoProcessor

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.models.pixels import limit_pixels
from othink_pipeline.models.prompts import base_of

if TYPE_CHECKING:
    from othink_pipeline.models.parameters import ModelSettings

transformers.utils.logging.disable_progress_bar()  # the log says what happens, a line a step


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
        if "trust_remote_code" in str(error):  # its advice, which nobody can follow here
            raise ConfigurationError(
                f"model {path} needs code of its own, which is never run here. Take a model of a "
                "type that transformers has itself; many have a copy whose name ends in -hf."
            ) from error
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
        state: the weights by their names in ``model``, where it does not hold them whole itself;
            then it has no adapters to merge, which ``check_launcher`` sees to.
    """
    if isinstance(model, PeftModel) and not merge:
        model.save_pretrained(str(folder), state_dict=state)
    else:
        base = base_of(model)
        if state is None:
            state = _whole_state(base, dtype)
        elif dtype is not None:
            kept = {  # tied ones stay so
                id(weight): weight.to(dtype) if weight.is_floating_point() else weight
                for weight in state.values()
            }
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
