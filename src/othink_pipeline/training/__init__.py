"""One model trained: SFT, or GRPO with a KL weight of every update.

- ``parameters``: blocks: methods, rewards, health
- ``loop``: what every training shares
- ``sft``: supervised fine-tuning
- ``rl``: GRPO
- ``kl``: KL schedules and controllers
- ``dynamic_kl``: GRPO whose KL weight a schedule sets
- ``kl_estimators``: what stands for the KL in the loss
- ``moving_reference``: a reference that follows the policy
- ``rewards``: rule-based rewards
- ``rows``: examples as the trainers take them
- ``shared_prompts``: each prompt of GRPO computed once
- ``sharing_check``: whether that gives what TRL's own computation gives
- ``packing``: completions computed behind their shared prompt
- ``prompt_attention``: attention in two parts
- ``trainable``: which weights are trained
- ``gather``: weights that are shared out, gathered
- ``guard``: what becomes of numbers that go wrong
- ``guard_rl``: the same for GRPO
- ``health``: policies for numbers that go wrong
- ``resume``: states that an interrupted training goes on from
"""
