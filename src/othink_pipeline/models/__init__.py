"""Vision-language models: loaded, asked, saved.

- ``parameters``: blocks: base model, how it is loaded, how it computes
- ``manifests``: what a base model is, and how it was made
- ``base_models``: where the base models are
- ``load``: load and save a model
- ``generation``: examples completed, in batches
- ``prompts``: prompts as tensors
- ``pixels``: how large pictures are to a model
- ``sampling``: completions, each prompt read once
- ``mini_qwen2_vl``: the mini model
- ``pretraining``: the mini model, made from nothing
"""
