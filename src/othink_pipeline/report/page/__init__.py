"""The report as one HTML file that asks the network for nothing.

- ``items``: test examples with small pictures
- ``samples``: six of them, chosen by rule
- ``archive``: all predictions, packed for the page's script
- ``charts``: intervals and curves as coordinates
- ``render``: ``page.html`` (Jinja) filled with all that, ``page.css`` and ``page.js``
"""
