"""The same_task_eval pipeline."""
