"""Tasks and data sets -> the validated, split examples in Arrow files.

- ``parameters``: blocks: splits, prompts, where a task is read from
- ``tasks``: one module a task that is drawn
- ``examples``: examples: drawn, checked, written, read
- ``manifests``: what a task's examples are
- ``pictures``: pictures found, and made what a model sees
- ``columns``: what of a row an example is made of, spelt as its columns' types mean it
- ``sources``: rows of a data set
- ``fingerprints``: what a data set holds, quickly told
- ``source_splits``: the splits of a task that is read
- ``near_duplicates``: training pictures that show almost what a test picture shows
- ``preparation``: all of it for one task, published
"""
