"""What every room stands on; imports nothing of ours and never torch.

- ``blocks``: closed, typed blocks of parameters; ``ConfigurationError``
- ``paths``: what may be a path in the parameters
- ``files``: content keys, digests, publishing at once
- ``manifests``: what finished work says of itself: closed blocks of a known version
- ``locks``: one process at a time, and who it is
- ``processes``: which process it is, and whether it lives
- ``presence``: which runs are at work in a folder
- ``code``: which of our code a result depends on
- ``launchers``: what launchers of several processes leave behind
- ``stopping``: Ctrl-C and SIGTERM
- ``console``: colours, where a terminal shows them
- ``units``: sizes and times as people read them
- ``redaction``: addresses and errors without credentials
- ``safetensors``: how large a model is, from the headers of its files
- ``hub``: models and data sets of the Hugging Face hub
"""
