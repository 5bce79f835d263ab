"""The wire contract: what callers send and get. `schemas.py` gives all of it by one name."""
