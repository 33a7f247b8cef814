"""The blocks that say how a model is trained; free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from othink_pipeline.core.blocks import Block, LearningRate, Positive, Share, Weight
from othink_pipeline.training.kl import KLSchedule

FaultPolicy = Literal["stop", "skip_batch", "go_on"]


class Lora(Block):
    """Train low-rank adapters (arXiv 2106.09685) in place of the weights themselves."""

    rank: Positive
    """Of the two matrices whose product is added to a layer's weight."""
    alpha: Annotated[float, Field(gt=0)]
    """The adapters' output is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Share of an adapter's inputs that is zeroed in training."""
    modules: tuple[str, ...] | Literal["all-linear"]
    """Names of the layers that get one: ``[q_proj, v_proj]``; or all but the output layer."""
    merge: bool
    """Checkpoints hold whole models with the adapters in them, not the adapters alone."""

    @field_validator("modules", mode="before")
    @classmethod
    def _check_modules(cls, modules: Any) -> Any:
        if modules == "all-linear":
            return modules
        named = isinstance(modules, list | tuple) and modules
        if not named or not all(isinstance(name, str) for name in modules):
            raise ValueError("must be all-linear, or a list of names of layers: [q_proj, v_proj]")
        return tuple(modules)


class Training(Block):
    """What every method gets: the same prompts, in the same order, as often; the same weights."""

    updates: Positive
    """Optimizer steps."""
    prompts_per_update: Positive
    """Prompts of one optimizer step, over all processes."""
    checkpoint_every_updates: Positive
    """Optimizer steps between checkpoints that are kept and scored; the last is one, too."""
    validation_examples: Positive
    """Validation examples of *each* task that every checkpoint is scored on."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
    """The 8-bit ones (bitsandbytes) keep Adam's moments in a quarter of the memory, on a GPU."""
    freeze_vision: bool
    """The vision tower is not trained."""
    lora: Lora | None
    """null: all weights are trained."""

    @property
    def prompts(self) -> int:
        """Prompts of a whole training; one that is asked again counts again."""
        return self.updates * self.prompts_per_update


class Method(Training):
    """What both algorithms need."""

    learning_rate: LearningRate
    """Adam's, at its highest."""
    lr_schedule: Literal["constant", "linear", "cosine"]
    """How the learning rate goes on after warming up: as it is, or down to 0 at the last update."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    """Share of the updates in which the learning rate rises from 0."""
    max_grad_norm: Annotated[float, Field(gt=0)]
    """A gradient whose L2 norm is larger is scaled down to it."""
    weight_decay: Weight
    """AdamW's: an update also takes learning rate times this share off each weight, but off no bias
    and no norm."""


class SFT(Method):
    """Supervised fine-tuning."""

    algorithm: Literal["sft"]
    target: Literal["answer", "steps"]
    """``<answer> n </answer>`` as in the paper's data, or the worked steps before it."""

    @property
    def rows_per_update(self) -> int:
        """Sequences that an update's loss is taken over."""
        return self.prompts_per_update


class Rewards(Block):
    """Weights of the rewards; one with weight 0 is logged, and no part of the sum."""

    accuracy: Weight
    """Of the reward 1 for a right answer."""
    format: Weight
    """Of the reward 1 for a completion that is ``<think>…</think><answer>…</answer>``."""
    answer: Literal["tagged", "any"]
    """Where the accuracy reward looks: in the one answer tag, or without it at the last number.
    With ``tagged`` accuracy pays for the format too."""

    @model_validator(mode="after")
    def _check_any(self) -> Rewards:
        if self.accuracy + self.format == 0:
            raise ValueError("all rewards have weight 0: there is nothing to learn from")
        return self


class RL(Method):
    """GRPO; with a dynamic ``kl`` it is GRPO-D."""

    algorithm: Literal["rl"]
    completions_per_prompt: Annotated[int, Field(ge=2)]
    """G: advantages are relative to the mean reward of this group."""
    max_completion_tokens: Positive
    """A completion is cut off after so many tokens."""
    temperature: Annotated[float, Field(gt=0)]
    """Logits are divided by it before completions are sampled; 1: the policy as it is."""
    rewards: Rewards
    """What a completion earns."""
    loss_type: Literal["grpo", "dr_grpo", "bnpo", "dapo"]
    """What a token's loss is divided by: the length of its completion and the number of completions
    (arXiv 2402.03300), the most tokens and that number (Dr. GRPO, arXiv 2503.20783), or all tokens
    of a micro-batch (bnpo) or of an update (DAPO, arXiv 2503.14476)."""
    scale_rewards: Literal["group", "batch", "none"]
    """Advantages are divided by the rewards' standard deviation within the prompt's completions, or
    within the update, or not at all (Dr. GRPO)."""
    num_iterations: Positive
    """Updates that learn from the same completions, one after the other. The prompts of a training
    become as many times fewer. With 1 the policy is the one that sampled, and the clipping and
    ``importance_sampling_level`` change nothing."""
    epsilon: Annotated[float, Field(gt=0, lt=1)]
    """A ratio of policies below 1 - epsilon, or above 1 + epsilon, is clipped."""
    epsilon_high: Annotated[float, Field(gt=0)] | None
    """In place of epsilon above 1 (DAPO's clip-higher: 0.28); null: the same."""
    importance_sampling_level: Literal["token", "sequence"]
    """Ratios of tokens, or their geometric mean over a completion (GSPO, arXiv 2507.18071)."""
    unbiased_kl: bool
    """Multiply the KL's estimator by the policy's ratio to itself: its gradient is then that of the
    KL (DeepSeek-V3.2, arXiv 2512.02556; TRL's default). false: the estimator alone, as GRPO and
    R1-V have it, and as ratios of sequences ask for it."""
    kl_estimator: Literal["k1", "k2", "k3"]
    """What stands for the KL of a token in the loss, with d = log reference - log policy: -d, d²/2
    or exp(d) - d - 1 (http://joschu.net/blog/kl-approx.html). k1 wants ``unbiased_kl``, k2 must not
    have it; docs/kl.md has their gradients. ``train/kl`` is k3 in any case."""
    sync_ref_model: bool
    """The reference of the KL follows the policy; false: it is the base model throughout."""
    ref_model_sync_steps: Positive
    """Updates between two moves of a reference that follows."""
    ref_model_mixup_alpha: Annotated[float, Field(gt=0, le=1)]
    """A move sets the reference to (1 - alpha) reference + alpha policy (TR-DPO, arXiv
    2404.09656); 1: to the policy."""
    kl: KLSchedule = Field(discriminator="schedule")
    """How strongly the policy is held to the base model, at every update; each method's own."""

    @field_validator("num_iterations")
    @classmethod
    def _check_iterations(cls, iterations: int, info: ValidationInfo) -> int:
        updates = info.data.get("updates", iterations)
        if updates % iterations:
            raise ValueError(
                f"must divide updates ({updates}), or the last completions would be learnt from "
                "less often"
            )
        return iterations

    @field_validator("unbiased_kl")
    @classmethod
    def _check_ratio(cls, unbiased: bool, info: ValidationInfo) -> bool:
        if unbiased and info.data.get("importance_sampling_level") == "sequence":
            raise ValueError(
                "does not go with importance_sampling_level = 'sequence': the gradient of such a "
                "ratio is a mean over the completion, and the KL's of no token. Set unbiased_kl: "
                "false, or importance_sampling_level: token"
            )
        return unbiased

    @field_validator("kl_estimator")
    @classmethod
    def _check_estimator(cls, estimator: str, info: ValidationInfo) -> str:
        unbiased = info.data.get("unbiased_kl")
        if estimator == "k1" and unbiased is False:
            raise ValueError(
                "asks for unbiased_kl: true. By itself its gradient is zero on average: it would "
                "hold the policy to nothing"
            )
        if estimator == "k2" and unbiased:
            raise ValueError(
                "asks for unbiased_kl: false. Its own gradient is that of the KL already, and with "
                "unbiased_kl it no longer is"
            )
        return estimator

    @field_validator("sync_ref_model")
    @classmethod
    def _check_reference(cls, moves: bool, info: ValidationInfo) -> bool:
        if moves and info.data.get("lora") is not None:
            raise ValueError(
                "does not go with lora: the reference is then the base model without the adapters, "
                "and nothing of it can move. Set lora: null, or sync_ref_model: false"
            )
        return moves

    @field_validator("ref_model_sync_steps")
    @classmethod
    def _check_sync_steps(cls, steps: int, info: ValidationInfo) -> int:
        iterations = info.data.get("num_iterations", 1)
        latest = info.data.get("updates", steps + iterations) - iterations
        if info.data.get("sync_ref_model") and steps > latest:
            raise ValueError(
                f"must be at most updates - num_iterations ({latest}), or the reference never "
                "moves in time for completions. Lower it, or set sync_ref_model: false"
            )
        return steps

    @property
    def prompts(self) -> int:
        """Prompts of a whole training; one that is asked again counts again."""
        return self.updates // self.num_iterations * self.prompts_per_update

    @property
    def rows_per_update(self) -> int:
        """Sequences that an update's loss is taken over."""
        return self.prompts_per_update * self.completions_per_prompt


class Health(Block):
    """What is done about numbers that go wrong; each fault has its policy.

    In no content key, for mostly nothing goes wrong. A training is reused, or gone on with, where
    what went wrong in it has its policy and thresholds as then, and no threshold is stricter.
    """

    loss_not_finite: FaultPolicy
    """The loss of a batch is NaN or infinite."""
    gradient_not_finite: FaultPolicy
    """So is the gradient of a finite loss."""
    kl_overflow: FaultPolicy
    """A token is e^20 times as likely to the reference as to the policy."""
    reward_failed: FaultPolicy
    """A reward function raised, or returned no reward for each completion."""
    reward_timeout: FaultPolicy
    """A reward function took longer than ``reward_timeout_s``."""
    reward_timeout_s: Annotated[float, Field(gt=0, le=86400)]
    """Seconds for the rewards of one batch."""
    patience_updates: Positive
    """Updates in a row that make a lasting fault; so many skipped ones in a row are borne."""
    no_advantage: FaultPolicy
    """In each group all rewards are equal: there is nothing to learn from (lasting)."""
    endless_completions: FaultPolicy
    """``endless_share`` of the completions are cut off at the most tokens (lasting)."""
    endless_share: Annotated[float, Field(gt=0, le=1)]
    """Share of completions that are cut off, from which on they are called endless."""
    format_collapse: FaultPolicy
    """The format reward was once ``format_learnt`` and is below ``format_lost`` (lasting)."""
    format_learnt: Share
    """Mean format reward that once reached can be lost."""
    format_lost: Share
    """Mean format reward below which it is."""
    completions_every_updates: Annotated[int, Field(ge=0)]
    """MLflow shows some of RL's completions (rewards and advantages beside them) every so many
    updates, the first one's to begin with; 0: never."""

    @model_validator(mode="after")
    def _check_format(self) -> Health:
        if self.format_lost > self.format_learnt:
            raise ValueError(
                f"format_lost <= format_learnt is asked, got format_lost = {self.format_lost}, "
                f"format_learnt = {self.format_learnt}"
            )
        return self
