"""How jobs come in and outputs go out: Runpod's loop, the HTTP paths, and the start of both."""
