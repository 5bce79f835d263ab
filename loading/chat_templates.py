"""Whether a model's chat template keeps within bounds, before a job uses it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loading import WeightsError
from prompting import template_grammar
from prompting.template_process import TemplateTooCostly

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Where transformers looks for templates, the one that wins first.
_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


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
        found = [directory / name for name in _FILES if (directory / name).exists()]
        reason = error.sentence.removeprefix("messages: ").partition(";")[0]
        raise WeightsError(
            f"{found[0] if found else directory} is not served: {reason}; replace its chat "
            "template, or remove it"
        ) from error
