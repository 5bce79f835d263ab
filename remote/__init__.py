"""A worker somewhere else, used from here. client.py has the names that callers import.

A checkout's `python handler.py` uses `local_run` and `summary` of these too.
"""
