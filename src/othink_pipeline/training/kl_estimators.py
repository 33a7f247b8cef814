"""What stands for the KL in the loss: k1, k2 or k3 of every sampled token.

With d = log reference - log policy of a token that the policy sampled, KL(policy, reference) is the
mean of -d. John Schulman (http://joschu.net/blog/kl-approx.html) compares three estimators of its
*value*. As a term of a loss what counts is the *gradient*, which is another matter (arXiv
2506.09477). In units of the gradient of log policy, alone and times the policy's ratio to itself
(TRL's ``use_bias_correction_kl``), whose value is 1 while the policy is the one that sampled:

====  ==============  =========================================  ==========================
name  value           gradient                                   gradient times the ratio
====  ==============  =========================================  ==========================
k1    -d              1: zero on average                         1 - d: the KL's
k2    d²/2            -d: the KL's                               d²/2 - d: that of k2's mean
k3    exp(d) - d - 1  1 - exp(d): that of KL(reference, policy)  -d: the KL's
====  ==============  =========================================  ==========================

So k1 without the ratio holds the policy to nothing, and k2 with it no longer has the KL's gradient:
``parameters.RL`` refuses both. The ratio is the token's: the gradient of a completion's geometric
mean is the same for all its tokens, and the right column no longer holds; refused, too.

Legend: R rows (completions), C completion tokens (padded on the right).
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from othink_pipeline.training.moving_reference import MovingReferenceTrainer

Estimator = Literal["k1", "k2", "k3"]


def estimate(estimator: Estimator, policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The KL of each token, in nats; negative ones are possible with k1 alone.

    Args:
        estimator: see above.
        policy: log-probabilities of the sampled tokens [R x C], which the gradient goes to.
        reference: the same of the reference [R x C].

    Returns:
        [R x C].
    """
    difference = reference - policy
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    return torch.exp(difference) - difference - 1


class KLEstimatorTrainer(MovingReferenceTrainer):
    """GRPO whose KL term is one of three estimators; TRL's own is k3.

    The metric ``kl`` is the mean of k3 whichever is in the loss (times the ratio where that is in
    the loss): it has neither k2's bias nor k1's variance, and curves, ``Adaptive`` and the report
    mean the same by it in all methods.

    Args:
        kl_estimator: k3 is left to TRL.
    """

    max_completion_length: Any  # typed too widely where it is inherited from

    def __init__(self, *args: Any, kl_estimator: Estimator = "k3", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kl_estimator = kl_estimator
        self._log_probs: torch.Tensor | None = None  # of the latest forward pass [R x C]

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        computed = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self.kl_estimator != "k3":
            self._log_probs = computed[0]
        return computed

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if self.kl_estimator == "k3":
            return super()._compute_loss(model, inputs)
        weight, self.beta = self.beta, 0.0  # TRL's own KL term is left out
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = weight
        policy, self._log_probs = self._log_probs, None
        assert policy is not None
        reference, mask = inputs["ref_per_token_logps"], inputs["completion_mask"]
        ratio = self._ratio(policy, inputs) if self.args.use_bias_correction_kl else 1
        with torch.no_grad():
            seen = ((estimate("k3", policy, reference) * ratio) * mask).sum()
            totals = self.accelerator.reduce(torch.stack([seen, mask.sum().float()]), "sum")
        self._metrics["train"]["kl"].append((totals[0] / totals[1].clamp(min=1)).item())
        kl = estimate(self.kl_estimator, policy, reference) * ratio
        return loss + weight * self._average(kl, inputs)

    def _ratio(self, policy: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Of the policy to the one that sampled, as TRL has it for tokens [R x C]."""
        sampled = inputs.get("old_per_token_logps")
        return torch.exp(policy - (policy.detach() if sampled is None else sampled))

    def _average(self, values: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Of all tokens' values [R x C], in TRL's way for the type of the loss."""
        mask, passes = inputs["completion_mask"], self.current_gradient_accumulation_steps
        of_rows: torch.Tensor = (values * mask).sum(-1)  # [R]
        average: torch.Tensor
        if self.loss_type == "grpo":
            average = (of_rows / mask.sum(-1).clamp(min=1)).mean() / passes
        elif self.loss_type == "bnpo":
            average = of_rows.sum() / mask.sum().clamp(min=1) / passes
        elif self.loss_type == "dr_grpo":
            average = of_rows.sum() / (len(mask) * self.max_completion_length) / passes
        else:  # dapo
            generated = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
            average = of_rows.sum() / generated
        return average
