"""From names and files to a replacement model in memory: sources, transcoders, engines."""


class UnsupportedArchitectureError(ValueError):
    """The engine has no exact way to run the model as it is configured; the message says why."""
