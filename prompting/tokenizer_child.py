"""The program that tokenises texts beforehand, in a process that `tokenizer_process` starts.

A tokenizer.json is a program too. Its patterns can take time without end for some texts, its
replacements memory, in Rust code that holds Python's lock: in the worker nothing could stop it.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SENTENCE_CHARACTERS = 500


def _read(state: str) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(state)
    # As transformers has them for every text of the worker's.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def answer(tokenizer: Tokenizer, request: dict[str, Any]) -> dict[str, str]:
    """Whether texts can be tokenised: one of `done`, `fault` and `excess`."""
    try:
        for text in request["texts"]:
            tokenizer.encode(text)
    except MemoryError:
        raise
    except BaseException as error:
        return _what_failed(error)
    return {"done": ""}


def _what_failed(error: BaseException) -> dict[str, str]:
    """Rust's panics are no subclass of Exception: the pattern library's, once it gives up."""
    kind = "fault" if isinstance(error, Exception) else "excess"
    return {kind: str(error)[:_SENTENCE_CHARACTERS]}


def main(memory_bytes: int, cpu_s: float) -> None:
    """Read a tokenizer from the input's first line, then answer requests within bounds."""
    from prompting.child_loop import ENCODING, Answer, serve

    def prepare() -> Answer:
        opening = json.loads(sys.stdin.buffer.readline().decode(*ENCODING))
        try:
            return partial(answer, _read(opening["tokenizer"]))
        except MemoryError:
            raise
        except BaseException as error:
            failed = _what_failed(error)
            return lambda _: failed

    serve(prepare, memory_bytes, cpu_s)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))  # an isolated Python has not even its own
    main(int(sys.argv[1]), float(sys.argv[2]))
