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
- ``scores``, ``differences``, ``training``, ``published``: its sections
- ``tables``: numbers and tables as text
- ``figures``: heat map and curves
- ``sample_figure``: the page's samples as a figure
- ``page``: all of it in one HTML file, with samples and every prediction
"""
