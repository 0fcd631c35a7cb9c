"""Proof by violence: processes are killed at the worst moments, and every promise is counted.

`make chaos`, or `python -m tests.chaos`, runs it for long; the tests here run it for a minute.
"""
