"""What each command of `client.py` does."""
