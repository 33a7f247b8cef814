"""Text -> verdict: what the answer is, and whether it is right.

- ``strict``: our own rule; rewards and tests both use it
- ``answers``: the grammar of answers, read to exact values
- ``surds``: exact arithmetic with square roots
- ``r1v``: what R1-V did, faults included
"""
