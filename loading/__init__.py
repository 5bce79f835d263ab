"""From the names of a model and its transcoders to a loaded model, and the errors on the way."""

from collections.abc import Iterable


class WeightsError(Exception):
    """Files can't be had or read, or aren't what is served. The message says what to do."""


class UnsupportedArchitectureError(ValueError):
    """The engine has no exact way to run the model as it is configured; the message says why."""


class WeightsMismatchError(ValueError):
    """A checkpoint's weights are not those of the model that its configuration describes."""

    REMEDY = (
        "They and config.json don't belong together, or a file is damaged: download the model anew"
    )

    @classmethod
    def check(
        cls,
        *,
        missing: Iterable[str] = (),
        misshapen: Iterable[str] = (),
        unread: Iterable[str] = (),
    ) -> None:
        """Raise the error that names these weights, unless none is given.

        Args:
            missing: those that the model has and the checkpoint lacks.
            misshapen: those of another shape.
            unread: those that the checkpoint has and the model lacks.
        """
        faults = {
            "lack": missing,
            "have another shape than the model's": misshapen,
            "hold what the model doesn't have:": unread,
        }
        clauses = [f"{verb} {_first(list(names))}" for verb, names in faults.items() if names]
        if clauses:
            raise cls(f"the weights {'; they '.join(clauses)}. {cls.REMEDY}")


def _first(names: list[str], n: int = 8) -> str:
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more
