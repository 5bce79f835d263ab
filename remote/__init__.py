"""A worker somewhere else, used from here: `client.py` is the way in."""
