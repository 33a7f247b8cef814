"""The grid on Ray: cells and tests side by side, on a laptop's cores or on many machines.

``kedro run --runner=othink_pipeline.cluster.runner.RayRunner``; nothing else imports Ray.

- ``runner``: Kedro's runner: loads, calls hooks and saves in the driver
- ``schedule``: which node comes next, and what nobody reads any more
- ``pool``: nodes as Ray's tasks, given again when their process dies
- ``connection``: a Ray to run on, checked before anything is trained
- ``surroundings``: folder, environment, code and libraries that every process must have
- ``worker``: what Ray's processes do
- ``machines``: a cell's training on several machines
- ``share``: what the others of them do
"""
