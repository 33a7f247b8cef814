"""Predictions -> transfer matrix, intervals, text and figures; never torch.

- ``parameters``: what the report looks at, what it calls it
- ``matrix``: trained on x tested on
- ``estimators``: means, gains and their intervals
- ``resampling``: the seeded bootstrap
- ``significance``: tests of differences
- ``comparison``: methods compared pair by pair
- ``verdict``: what it comes to, in words
- ``metrics``: what MLflow shows of it
- ``markdown``: the report
- ``figures``: heat map and curves
- ``page``: all of it in one HTML file, with samples and every prediction
"""
