"""The grid, and one cell of it trained or tested; what makes it be made again.

- ``parameters``: the whole of the parameters, read
- ``methods``: a method's parameters, resolved
- ``grid``: tasks x methods x seeds
- ``keys``: content keys: what makes a cell be trained again
- ``manifests``: what a cell and its tests have made, or why they failed
- ``published_datasets``: files in the catalog, each replaced at once
- ``manifest_dataset``: manifests in the catalog
- ``failures``: what goes wrong in one cell, told
- ``train``: a cell trained, once
- ``job``: what one process of it does
- ``completions``: what RL samples on its way, to be read
- ``progress``: a training on the screen
- ``processes``: several processes for a cell
- ``accelerate_config``: what an Accelerate configuration says
- ``evaluate``: a cell tested, once
- ``samples``: a few answers of it, to be read
"""
