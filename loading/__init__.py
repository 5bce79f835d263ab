"""From names and files to a replacement model in memory: sources, transcoders, engines."""


class UnsupportedArchitectureError(ValueError):
    """The engine can't run the model with these transcoders; the message says what it can."""
