"""Which model the grid starts from, how it is loaded, and how the machine computes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from othink_pipeline.core.blocks import Block, Count, HubId, LearningRate, Place, Positive, Share

VISION = ("visual", "vision_model")
"""What the families call their vision tower: Qwen's, SmolVLM's."""


class HubModel(Block):
    """A model of the Hugging Face hub."""

    id: HubId
    """Its name on the hub."""
    revision: str
    """A commit, tag or branch; the commit that it stood for is recorded."""


class BaseModel(Block):
    """What the grid starts from: folders, or a model of the hub."""

    path: Annotated[tuple[Place, ...], Field(min_length=1, strict=False)] | None
    """The base models that the grid starts from: folders, relative to the project, or a single
    one. With n of them, cells with seed s start from number s mod n."""
    hub: HubModel | None
    """null: ``path`` says where it is."""

    @field_validator("path", mode="before")
    @classmethod
    def _one_to_many(cls, path: Any) -> Any:
        return (path,) if isinstance(path, str) else path

    @model_validator(mode="after")
    def _check_one(self) -> BaseModel:
        if (self.path is None) == (self.hub is None):
            raise ValueError("needs either path or hub, and null for the other")
        return self

    @property
    def count(self) -> int:
        """How many base models there are."""
        return 1 if self.path is None else len(self.path)


class ModelSettings(Block):
    """How a model is loaded, the same for training and for tests."""

    dtype: Literal["float32", "bfloat16"]
    """Of the weights that are not trained, and of checkpoints. Those that are trained are float32:
    to a bfloat16 the steps of usual learning rates are nothing."""
    attention: Literal["sdpa", "eager", "flash_attention_2"]
    """What the layers attend with; prompts are shared with each of them."""
    min_pixels: Positive | None
    """A picture of fewer pixels is scaled up to so many; null: as the model's files say."""
    max_pixels: Positive | None
    """A picture of more pixels is scaled down to so many; null: as the model's files say."""

    @property
    def uses_flash_attention(self) -> bool:
        """The layers attend with the library ``flash_attn``."""
        return self.attention == "flash_attention_2"

    @model_validator(mode="after")
    def _check_pixels(self) -> ModelSettings:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels <= max_pixels is asked, got min_pixels = {self.min_pixels}, "
                f"max_pixels = {self.max_pixels}"
            )
        return self


class MiniModel(Block):
    """A mini Qwen2-VL: its size and its supervised training."""

    seed: Count
    """Of its weights and of the order of its examples."""
    vocab_size: Annotated[int, Field(ge=300)]
    """Tokens that the tokenizer knows."""
    context_tokens: Positive
    """Tokens of a prompt and its answer at most, those of the picture among them."""
    hidden_size: Annotated[int, Field(gt=0, multiple_of=32)]
    """Width of the language model."""
    layers: Positive
    """Depth of the language model."""
    vision_size: Annotated[int, Field(gt=0, multiple_of=32)]
    """Width of the vision tower."""
    vision_layers: Positive
    """Depth of the vision tower."""
    updates: Positive
    """Optimizer steps."""
    batch_size: Positive
    """Examples of one optimizer step."""
    learning_rate: LearningRate
    """Adam's, at its highest."""
    bf16: bool
    """Matrix products in bfloat16: quicker on a CPU that has them, slow on one that has not."""
    worked_rate: Share
    """Share of targets with worked steps, until the last phase."""
    last_phase_updates: Count
    """Optimizer steps of the last phase, out of all ``updates``."""
    last_phase_worked_rate: Share
    """Share of targets with worked steps in the last phase: how often the base model thinks."""


class Rebuild(MiniModel):
    """Making the mini Qwen2-VL."""

    path: Place
    """The folder that it goes to."""


class VLLMColocate(Block):
    """vLLM generates in the training processes, on their GPUs."""

    mode: Literal["colocate"]
    gpu_memory: Annotated[float, Field(gt=0, lt=1)]
    """The share of a GPU's memory that it takes."""


class VLLMServer(Block):
    """A vLLM server of its own generates (``trl vllm-serve``)."""

    mode: Literal["server"]
    host: str
    """The server's name or address."""
    port: Annotated[int, Field(gt=0, lt=65536)]
    """The server's TCP port."""


class Compute(Block):
    """How to compute: it changes results by rounding and by which random numbers fall where."""

    share_prompts: bool
    """RL computes each prompt once, not once for each of its completions."""
    bf16: bool
    """Train in bfloat16: quicker on a GPU that has it, with results of its own."""
    num_processes: Positive
    """Processes that train a cell together, one a GPU."""
    launcher: Place | None
    """The Accelerate configuration that these are launched with; null: plain data parallelism."""
    micro_batch_size: Positive | None
    """Rows (SFT: prompts, RL: completions) of one backward pass in each process; null: all of an
    update."""
    gradient_checkpointing: bool
    """Compute activations again in the backward pass: less memory, more time."""
    vllm: Annotated[VLLMColocate | VLLMServer, Field(discriminator="mode")] | None
    """Who generates RL's completions; null: the model itself."""
    resume_every_updates: Positive
    """An interrupted training goes on from a state that is at most so many updates old."""
    fresh: bool
    """Train and test again what is finished or half done."""

    def share_rows(self, rows: int) -> tuple[int, int]:
        """The rows of an update, shared out: of a backward pass, and passes in each process.

        Raises:
            ValueError: they cannot be shared out evenly.
        """
        each, left = divmod(rows, self.num_processes)
        size = min(self.micro_batch_size or each, each)
        if left or each % size:
            raise ValueError(
                f"{rows} rows of an update (prompts_per_update, for RL times "
                f"completions_per_prompt) do not go evenly into compute.num_processes = "
                f"{self.num_processes} processes and passes of compute.micro_batch_size = "
                f"{self.micro_batch_size} rows. Take divisors."
            )
        return size, each // size

    @property
    def launched(self) -> bool:
        """A cell is trained by processes of its own, not by that of the run."""
        return self.num_processes > 1 or self.launcher is not None
