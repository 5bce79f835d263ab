"""Tokenises texts beforehand within bounds of time and memory, in a process that can be ended.

For a tokenizer of whose parts `tokenizer_parts` doesn't know that they are quick: a text that its
process can tokenise, the worker can too.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from errors import Internal, InvalidInput
from prompting import tokenizer_child
from prompting.bounded_process import BoundedProcess
from prompting.child_loop import ENCODING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROGRAM = Path(tokenizer_child.__file__)
_LONGEST_ANSWER = 1 << 16


class TokenizerTooCostly(InvalidInput):
    """A tokenizer exceeds a bound on a text. The request is answered with this, a start ends."""


@dataclass(frozen=True)
class Bounds:
    """What it may take to read a tokenizer, and to tokenise a text.

    A real one takes milliseconds a text, and with 262,000 tokens a second and 300 MB to be read.
    """

    cpu_s: float = 5.0
    memory_bytes: int = 2 << 30  # of the whole process, with its interpreter and vocabulary


BOUNDS = Bounds()


class TokenizerProcess(BoundedProcess):
    """A process that has a tokenizer of its own."""

    environment: ClassVar[dict[str, str]] = {"TOKENIZERS_PARALLELISM": "false"}

    def __init__(self, state: str, bounds: Bounds) -> None:
        """Start nothing yet.

        Args:
            state: the tokenizer as tokenizer.json has it.
        """
        super().__init__(bounds.cpu_s, _LONGEST_ANSWER)
        self._state = state
        self._bounds = bounds

    def rehearse(self, texts: Sequence[str]) -> None:
        """Tokenise texts, for the time and memory that it takes.

        Raises:
            TokenizerTooCostly: more of one than the bounds, or the pattern library gives up.
            ValueError: the tokenizer can't be read, or fails; the message is its library's.
            Internal: the process does not run.
        """
        answered = self.ask({"texts": list(texts)})
        if "fault" in answered:
            raise ValueError(answered["fault"])
        if "done" not in answered:
            bounds = self._bounds
            raise TokenizerTooCostly(
                f"the model's tokenizer takes more than {bounds.cpu_s:g} s or "
                f"{bounds.memory_bytes >> 20} MiB, or more steps of a pattern than its library "
                "takes, for this text; send another text"
            )

    def _opening(self) -> bytes:
        return json.dumps({"tokenizer": self._state}).encode(*ENCODING) + b"\n"

    def _program(self) -> tuple[Path, list[str]]:
        return _PROGRAM, [str(self._bounds.memory_bytes), str(self._bounds.cpu_s)]

    def _purpose(self) -> tuple[str, str]:
        return "tokenises texts beforehand", "tokenizers"


def rehearse_all(tokenizer: PreTrainedTokenizerBase, bounds: Bounds) -> None:
    """Have each text of a tokenizer from here on tokenised beforehand.

    Whoever calls it, circuit-tracer too, gets TokenizerTooCostly where a text takes too much.
    """
    process = TokenizerProcess(tokenizer.backend_tokenizer.to_str(), bounds)
    kind: Any = type(tokenizer)

    class Rehearsed(kind):
        def _batch_encode_plus(
            self, batch_text_or_text_pairs: Any, *arguments: Any, **named: Any
        ) -> Any:
            batch = batch_text_or_text_pairs
            parts = [part for each in batch for part in ([each] if isinstance(each, str) else each)]
            try:
                process.rehearse(parts)
            except ValueError as error:
                raise Internal(f"the model's tokenizer fails: {error}") from None
            return super()._batch_encode_plus(batch, *arguments, **named)

    # transformers goes by the name of a tokenizer's class, as when it is saved.
    Rehearsed.__name__, Rehearsed.__qualname__ = kind.__name__, kind.__qualname__
    tokenizer.__class__ = Rehearsed
    weakref.finalize(tokenizer, process.close)
