"""The grid, and one cell of it trained or tested; what makes it be made again.

- ``parameters``: all blocks of parameters; a method's, resolved
- ``grid``: tasks x methods x seeds
- ``keys``: content keys: what makes a cell be trained again
- ``train``: a cell trained, once
- ``job``: what one process of it does
- ``processes``: several processes for a cell
- ``accelerate_config``: what an Accelerate configuration says
- ``evaluate``: a cell tested, once
"""
