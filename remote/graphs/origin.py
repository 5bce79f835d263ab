"""The model and the set that a graph's features are of. In another set a number is another feature.

A document says it in its metadata: `scan` is the model, `info.transcoder_set` the set as the worker
calls it, and `feature_details` has Neuronpedia's name of the set. Each may be missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.errors import WrongFile


@dataclass(frozen=True)
class Origin:
    """A graph's file, and what its document says of model and set; None where it says nothing."""

    path: Path
    model: str | None
    transcoder_set: str | None
    source_set: str | None

    @classmethod
    def of(cls, path: Path, metadata: object) -> "Origin":
        """Read the metadata of a document, whatever it is."""
        return cls(
            path,
            _text(metadata, "scan") or None,
            _text(_field(metadata, "info"), "transcoder_set"),
            _text(_field(metadata, "feature_details"), "neuronpedia_source_set"),
        )

    def check_same(self, other: "Origin") -> None:
        """Raise WrongFile for two graphs of different models or sets: they share no features."""
        if self.model == other.model and self._is_same_set(other):
            return
        raise WrongFile(
            f"{self.path} is of {self._words()}, {other.path} of {other._words()}: a feature of "
            "one is none of the other's"
        )

    def check_worker(self, transcoder_set: str | None) -> None:
        """Raise WrongFile for a worker with another set, where both sets are known.

        Whether it has the model the worker itself says, if a job's `model_id` is the graph's.
        """
        if None not in (known := {self.transcoder_set, transcoder_set}) and len(known) > 1:
            raise WrongFile(
                f"{self.path} is of the set {self.transcoder_set!r}, and the worker has "
                f"{transcoder_set!r}; ask a worker with the graph's model and set"
            )

    def _is_same_set(self, other: "Origin") -> bool:
        for names in (
            (self.transcoder_set, other.transcoder_set),
            (self.source_set, other.source_set),
        ):
            if None not in names:
                return names[0] == names[1]
        # One that names its set is taken for another than one that doesn't.
        return (self.transcoder_set, self.source_set) == (other.transcoder_set, other.source_set)

    def _words(self) -> str:
        name = self.transcoder_set or self.source_set
        return f"{self.model or ''!r}" + ("" if name is None else f" with {name!r}")


def _field(fields: object, name: str) -> Any:
    return fields.get(name) if isinstance(fields, Mapping) else None


def _text(fields: object, name: str) -> str | None:
    value = _field(fields, name)
    return value if isinstance(value, str) else None
