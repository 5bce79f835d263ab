"""From the names of a model and its transcoders to a loaded model, and the errors on the way."""


class WeightsError(Exception):
    """Files can't be had or read, or aren't what is served. The message says what to do."""


class UnsupportedArchitectureError(ValueError):
    """The engine has no exact way to run the model as it is configured; the message says why."""


class WeightsMismatchError(ValueError):
    """A checkpoint's weights are not those of the model that its configuration describes."""
