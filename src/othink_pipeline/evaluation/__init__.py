"""A model and examples -> predictions.

- ``predictions``: answers, each with its verdict
"""
