"""Chaos tests: kill processes at the worst moments, and count whether every promise holds.

`make chaos`, or `python -m tests.chaos`, is the long run. The tests here take a minute.
"""
