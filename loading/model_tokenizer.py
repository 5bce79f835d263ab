"""A model's tokenizer and its chat template, whichever version of transformers saved them.

transformers 5 names classes of tokenizers that version 4 lacks, and lists as `extra_special_tokens`
what version 4 reads as `additional_special_tokens`. All that such a tokenizer does to text is in
tokenizer.json, which both versions read with the same library.

Both are tried within bounds of time and memory, as they can ask for any amount of either.
"""

import logging
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loading import WeightsError
from loading.bounds import TOKENIZER_BYTES, brief_list
from loading.json_files import check_file, read_json
from prompting import template_grammar, tokenizer_parts
from prompting.template_process import TemplateTooCostly
from prompting.tokenizer_process import (
    BOUNDS,
    Bounds,
    TokenizerProcess,
    TokenizerTooCostly,
    rehearse_all,
)

# Where transformers looks for chat templates, the one that wins first.
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
_TOKENIZER_SUFFIXES = (".json", ".jinja", ".txt", ".model")
# Runs on which patterns go back, and what ends them.
_RUNS = (" ", "a", "A", "1", "!", "é", "中", "\n", "a ", " \n", "a1", "aA")
_HARD_TEXTS = [
    "".join(run * (1000 // len(run)) + end for end in ("", "\0", "\n!", "b")) for run in _RUNS
]


def read_tokenizer(directory: Path, bounds: Bounds = BOUNDS) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's directory. No code of the model's is run.

    Args:
        bounds: of a tokenizer that isn't known to be quick, for each text.

    Raises:
        WeightsError: transformers 5 saved it in a form that version 4 can't read; a file is too
            large, or takes too much time or memory for a text.
        Exception: whatever transformers raises for files that are unreadable.
    """
    _check_tokenizer_files(directory)
    for file in sorted(directory.glob("tokenizer*.json")):
        if file.name != "tokenizer_config.json":
            _check_parts(file, bounds)
    tokenizer = _read_tokenizer(directory)
    if tokenizer.is_fast and tokenizer_parts.unknown_parts(
        tokenizer_parts.state_of(tokenizer.backend_tokenizer)
    ):
        rehearse_all(tokenizer, bounds)
    return tokenizer


def _check_parts(file: Path, bounds: Bounds) -> None:
    """Raise WeightsError for a tokenizer.json that takes too much for a text, or may decode so."""
    try:
        content = file.read_bytes()
        state = tokenizer_parts.state_in(content)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file} is no JSON that can be read: replace it ({error})") from None
    if fields := tokenizer_parts.unknown_decoders(state):
        raise WeightsError(
            f"{file} is not served: {brief_list(fields)} can make its decoder take time without "
            "end; replace it with a pattern without repetition, and with no longer text"
        )
    fields = tokenizer_parts.unknown_parts(state)
    if not fields:
        return
    process = TokenizerProcess(content.decode("utf-8", "replace"), bounds)
    try:
        for text in _HARD_TEXTS:
            process.rehearse([text])
    except TokenizerTooCostly:
        raise WeightsError(
            f"{file} is not served: with its {brief_list(fields)} reading it, or a text of "
            f"{len(text)} characters, takes more than {bounds.cpu_s:g} s or "
            f"{bounds.memory_bytes >> 20} MiB; replace it with the file of a published model"
        ) from None
    except ValueError:
        pass  # transformers says what is wrong with it
    finally:
        process.close()


def _read_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
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
    # Not the class that the file names, of which transformers warns: version 4's may change what
    # tokenizer.json says.
    logger = logging.getLogger("transformers.tokenization_utils_base")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return PreTrainedTokenizerFast.from_pretrained(
            directory, trust_remote_code=False, **special
        )
    finally:
        logger.setLevel(level)


def check_template(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Render short messages of every run of roles, as jobs do.

    A template can do otherwise with the messages of a job: then the same bounds end that job.

    Raises:
        WeightsError: the template takes more time or memory than it may; the message names its
            file.
    """
    if not tokenizer.chat_template:
        return
    try:
        template_grammar.learn(tokenizer)
    except TemplateTooCostly as error:
        found = [directory / name for name in _TEMPLATE_FILES if (directory / name).exists()]
        reason = error.sentence.removeprefix("messages: ").partition(";")[0]
        raise WeightsError(
            f"{found[0] if found else directory} is not served: {reason}; replace its chat "
            "template, or remove it"
        ) from error


def _check_tokenizer_files(directory: Path) -> None:
    """Raise WeightsError for a file that a tokenizer is read from and that is too large to be."""
    for file in sorted(directory.iterdir()):
        if file.suffix in _TOKENIZER_SUFFIXES and file.exists():
            check_file(file, TOKENIZER_BYTES)
    for name in ("added_tokens.json", "special_tokens_map.json"):  # transformers reads them itself
        if (directory / name).exists():
            read_json(directory / name)
    for template in (directory / "additional_chat_templates").glob("*.jinja"):
        check_file(template, TOKENIZER_BYTES)
