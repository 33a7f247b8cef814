"""MLflow: what is said of a run, and how nothing of it gets lost; never torch.

- ``runs``: the runs of cells and base models
- ``records``: what is logged on a run at once
- ``views``: pages of MLflow that show all runs of a ``kedro run``
- ``registry``: checkpoints that are to be found by a name
- ``lifecycle``: the run of a ``kedro run``, and what is left RUNNING
- ``journal``: all that a training records, in a file of its own
- ``recorder``: the journal, delivered to MLflow without waiting for it
- ``mlflow_store``: writes that may be repeated
"""
