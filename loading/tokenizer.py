"""A model's tokenizer, whichever version of transformers saved it.

transformers 5 names classes that version 4 lacks, and lists as `extra_special_tokens` what version
4 reads as `additional_special_tokens`. All that such a tokenizer does to text is in tokenizer.json,
which both versions read with the same library.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from loading import WeightsError
from loading.config_json import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's directory. No code of the model's is run.

    Raises:
        WeightsError: transformers 5 saved it in a form that version 4 can't read.
        Exception: whatever transformers raises for files that are unreadable.
    """
    file = directory / "tokenizer_config.json"
    saved = read_json(file) if file.is_file() else {}
    special = {}
    if isinstance(saved.get("extra_special_tokens"), list):
        extra = saved["extra_special_tokens"]
        special = {"extra_special_tokens": {}, "additional_special_tokens": extra}
    # Only version 5 saves the name of the library that tokenizes.
    name, backend = saved.get("tokenizer_class"), saved.get("backend")
    if backend is None and name != "TokenizersBackend":
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, **special
        )
        return tokenizer
    if not (directory / "tokenizer.json").is_file() or backend not in (None, "tokenizers"):
        raise WeightsError(
            f"{file} was saved by transformers 5 ({backend or name}), and of such tokenizers the "
            "worker reads only those with a tokenizer.json: save it anew as a fast tokenizer"
        )
    # Not the class that the file names: version 4's may change what tokenizer.json says.
    with _class_warning_silenced():
        return PreTrainedTokenizerFast.from_pretrained(directory, **special)


@contextmanager
def _class_warning_silenced() -> Iterator[None]:
    """Silence transformers' warning that the class is not the one that the file names."""
    logger = logging.getLogger("transformers.tokenization_utils_base")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
