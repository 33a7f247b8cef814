"""Text -> verdict: what the answer is, and whether it is right.

- ``strict``: our own rule; rewards and tests both use it
- ``kinds``: kinds of answer: exact, number, choice, text, list, set
- ``answers``: the grammar of answers, read to exact values
- ``golds``: the texts that the right answers of tables stand for
- ``surds``: exact arithmetic with square roots
- ``r1v``: what R1-V did, faults included
"""
