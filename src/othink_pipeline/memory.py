"""What a training needs of a device's memory, part by part, in bytes.

Plain numbers in, plain numbers out; ``tests/test_memory.py`` compares them with what a model keeps.

Two sizes of a number occur. With ``half`` matrix products are computed in bfloat16, and what they
keep for the backward pass is, too; norms and the stream between the layers stay float32, as the
weights that are trained.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from othink_pipeline.launchers import Sharing

FLOAT32 = 4
HALF = 2

HEAD_TILE = (4096, 32768)
"""Tokens and entries of the vocabulary that TRL's fused output layer computes at a time."""

SAMPLING_COPIES = 5
"""Logits, their scores, probabilities, noise and quotient, all float32: see ``sampling.sample``."""

LIBRARIES = 1_000_000_000
"""A CUDA context with the libraries' kernels; on a CPU Python and the libraries."""


class Shape(NamedTuple):
    """The sizes of a model that its memory depends on."""

    layers: int
    hidden: int
    query: int
    """Heads times their size."""
    key_value: int
    inner: int
    """Of the feed-forward part."""
    vocabulary: int
    vision_layers: int
    vision_hidden: int
    vision_inner: int
    vision_gated: bool
    """Its feed-forward part is gated and its norms are those of the text layers: Qwen2.5-VL's."""
    patches: int
    """Patches of a picture that become one token."""


class Layout(NamedTuple):
    """The sequences of one pass."""

    rows: int
    length: int
    """Tokens of a row."""
    pictures: int
    judged: int
    """Tokens that the loss is over."""
    packed: bool
    """Several completions in a row, kept apart by an attention mask."""

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return self.rows * self.length


def read_shape(config: Any) -> Shape:
    """The sizes in a model's configuration, as Transformers reads it, of any family."""
    text, vision = config.get_text_config(), config.vision_config
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    qwen2 = hasattr(vision, "embed_dim") and hasattr(vision, "mlp_ratio")
    hidden = vision.embed_dim if qwen2 else vision.hidden_size
    merge: int = getattr(vision, "spatial_merge_size", None) or config.scale_factor
    return Shape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        query=heads * size,
        key_value=(getattr(text, "num_key_value_heads", None) or heads) * size,
        inner=text.intermediate_size,
        vocabulary=text.vocab_size,
        vision_layers=getattr(vision, "depth", None) or vision.num_hidden_layers,
        vision_hidden=hidden,
        vision_inner=int(hidden * vision.mlp_ratio) if qwen2 else vision.intermediate_size,
        vision_gated=getattr(vision, "hidden_act", None) == "silu",
        patches=merge**2,
    )


def lay_out(rows: int, group: int, prompt: int, completion: int, shared: bool) -> Layout:
    """The sequences of a pass over ``rows`` completions, ``group`` of them of each prompt."""
    if not shared:
        return Layout(rows, prompt + completion, rows, rows * completion, packed=False)
    prompts = -(-rows // group)
    length = prompt + min(rows, group) * completion
    return Layout(prompts, length, prompts, rows * completion, packed=True)


def held_bytes(
    trained: int,
    frozen: int,
    *,
    dtype_bytes: int,
    moment_bytes: int,
    reference: bool,
    sharing: Sharing,
    copied: bool,
) -> dict[str, float]:
    """What one process of a training holds all the time.

    Args:
        trained, frozen: weights; adapters are trained, what they are put on is frozen.
        dtype_bytes: of a frozen weight and of the reference's.
        moment_bytes: of the optimizer's moments, for each trained weight.
        reference: there is a second, frozen model for the KL.
        copied: the trained weights are kept as they were at first, as on a CPU; with a GPU that
            copy is in the main memory.
    """
    gradients, moments = sharing.gradients, sharing.moments
    parts: dict[str, float] = {}
    if sharing.deepspeed:
        parts["weights"] = dtype_bytes * (trained + frozen) / sharing.weights
        parts["gradients"] = dtype_bytes * trained / gradients
        parts["optimizer"] = (FLOAT32 + moment_bytes) * trained / moments
    else:
        parts["weights"] = (FLOAT32 * trained + dtype_bytes * frozen) / sharing.weights
        # Data parallelism adds up gradients in buckets of its own.
        buckets = 2 if sharing.kind == "data" else 1
        parts["gradients"] = buckets * FLOAT32 * trained / gradients
        parts["optimizer"] = moment_bytes * trained / moments
        if copied and sharing.kind != "fsdp":
            parts["weights at first"] = FLOAT32 * trained
    if reference:
        parts["reference"] = dtype_bytes * (trained + frozen) / sharing.weights
    return parts


def layer_bytes(shape: Shape, half: bool) -> int:
    """What one token leaves in one text layer for the backward pass.

    Two norms keep what came in and what they made of it, float32. The products keep their inputs:
    under autocast a copy for each of q, k, v, gate and up, else the norms' outputs. Attention
    keeps q, k, v (for every head) and its output; the gated feed-forward part four of its width.
    """
    size = HALF if half else FLOAT32
    norms = 4 * FLOAT32 * shape.hidden
    inputs = (5 if half else 2) * size * shape.hidden
    return norms + inputs + 4 * size * shape.query + 4 * size * shape.inner


def vision_layer_bytes(shape: Shape, half: bool) -> int:
    """The same of one patch in one layer of the vision tower, whose attention copies more."""
    size = HALF if half else FLOAT32
    norms = (4 if shape.vision_gated else 2) * FLOAT32 * shape.vision_hidden
    inner = (4 if shape.vision_gated else 3) * size * shape.vision_inner
    return norms + (2 + 6) * size * shape.vision_hidden + inner


def activation_bytes(per_layer: float, between: float, layers: int, checkpointing: bool) -> float:
    """What all layers leave for the backward pass, and what it adds at the first layer it comes to.

    Args:
        per_layer: of all tokens in a layer.
        between: of all tokens' stream from one layer to the next, all that checkpointing keeps.
    """
    if not layers:
        return 0.0
    kept = between * layers + per_layer if checkpointing else per_layer * layers
    return kept + per_layer / 2  # gradients of a layer, of which half are there at a time


def mask_bytes(layout: Layout, layers: int, checkpointing: bool, half: bool) -> float:
    """The attention masks of packed rows: each layer turns the one that it gets into numbers."""
    if not layout.packed:
        return 0.0
    entries = layout.rows * layout.length**2
    made = 1 if checkpointing else layers
    return entries * (1 + made * (HALF if half else FLOAT32))


def head_bytes(tokens: int, shape: Shape, trained: bool, half: bool) -> float:
    """What the fused output layer holds: a tile of the logits, never all, and its gradients.

    Args:
        tokens: that it is computed at.
        trained: it is, or shares the embeddings that are.
    """
    size = HALF if half else FLOAT32
    rows, columns = min(tokens, HEAD_TILE[0]), HEAD_TILE[1]
    tile = rows * columns * size + min(columns, shape.vocabulary) * shape.hidden * size
    gradients = FLOAT32 * shape.hidden * (2 * tokens + (shape.vocabulary if trained else 0))
    return tile + gradients


def cache_bytes(rows: int, tokens: int, shape: Shape, size: float) -> float:
    """Keys and values of all rows in a generation, ``size`` bytes a number."""
    return 2 * size * shape.layers * shape.key_value * rows * tokens


def sampling_bytes(rows: int, vocabulary: int) -> float:
    """Scores of the next token of every row."""
    return SAMPLING_COPIES * FLOAT32 * rows * vocabulary
