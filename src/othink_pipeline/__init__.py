"""OThink-MR1 as a Kedro project: GRPO with a dynamic KL weight for multimodal models."""

__version__ = "0.1.0"
