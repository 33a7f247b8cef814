"""Versions of libraries are looked up once: every content key asks for a dozen, 3 ms each."""

import importlib.metadata
from functools import cache

importlib.metadata.version = cache(importlib.metadata.version)
