"""The command line of `client.py`: its commands, their options, and values as written."""
