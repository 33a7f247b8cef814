"""Tasks and data sets -> the validated, split examples in Arrow files.

- ``parameters``: blocks: splits, prompts, where a task is read from
- ``tasks``: one module a task that is drawn
- ``examples``: examples: drawn, checked, written, read
- ``manifests``: what a task's examples are
- ``sources``: rows of a data set, whatever its columns are called
- ``source_splits``: the splits of a task that is read
- ``preparation``: all of it for one task, published
"""
