"""What would stop a run later stops it before it starts.

- ``rows``: what came of a check
- ``plan``: which cells are finished, half done, still to do
- ``stored``: is what a partial run starts from of today's parameters?
- ``time_left``: how long the trainings of a run still take
- ``environment``: folders, store, inputs, runner
- ``disk``: room on the disk
- ``compatibility``: do model, examples and parameters go together?
- ``lengths``: tokens of prompts, pictures and targets
- ``needs``: memory of weights, gradients and moments
- ``weights``: what of a model is trained, and its bytes
- ``costs``: how long the grid takes
- ``measure``: an update and a batch of answers, measured
- ``device``: what this machine has
- ``optional_libraries``: libraries that only some settings need
"""
