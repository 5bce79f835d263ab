"""What circuit-tracer wants of Gemma 3 chat models: a name, and the beginning of each prompt.

It recognises these models by their name alone. Their prompts must begin with the four tokens of
`<bos><start_of_turn>user\\n`, at whose positions it holds all features at zero.
"""

from typing import Any

from errors import InvalidInput

PREFIX = [2, 105, 2364, 107]  # <bos><start_of_turn>user\n


def is_gemma_3_it(model_name: str) -> bool:
    """Whether circuit-tracer takes a model of this name for a Gemma 3 chat model."""
    return "gemma-3" in model_name and model_name.endswith("-it")


def circuit_tracer_name(name: str, hf_config: Any, *, has_chat_template: bool) -> str:
    """The name by which circuit-tracer treats a model as what its configuration says it is.

    A suffix is added where the model's own name misleads: a directory may have any name.

    Args:
        name: Hugging Face id, or the name of a directory.
        hf_config: its `transformers` configuration.
        has_chat_template: whether its tokenizer has one. A Gemma 3 without an official name
            counts as a chat model if so.
    """
    if hf_config.model_type not in ("gemma3", "gemma3_text"):
        return f"{name} ({hf_config.model_type})" if is_gemma_3_it(name) else name
    # The smallest base model is the one without a suffix.
    official = "gemma-3" in name and name.endswith(("-it", "-pt", "gemma-3-270m"))
    return name if official or not has_chat_template else f"{name} as gemma-3-it"


def with_bos(ids: list[int], text: str, model_name: str) -> list[int]:
    """A prompt's tokens with the required beginning, of which only the BOS may be missing.

    `text` is the prompt without its BOS.

    Raises InvalidInput, which says what to send instead.
    """
    if ids[:3] == PREFIX[1:]:
        return [PREFIX[0], *ids]
    if ids[:4] == PREFIX:
        return ids
    if text.startswith("<start_of_turn>user\n"):
        raise InvalidInput(
            "the first turn begins with a line break, which becomes one token with the line break "
            f"that {model_name} requires before it; remove it, or the empty system message"
        )
    raise InvalidInput(
        f"prompt must begin with '<bos><start_of_turn>user\\n' for {model_name}; "
        "send messages instead, or begin the prompt with that"
    )
