"""The name under which circuit-tracer gets a model.

circuit-tracer recognises Gemma 3 chat models by their name alone. From these it demands the prefix
of a chat, and it ignores the features there. But a directory may have any name, and another model
may have such a name, so the name is made to say what the configuration says.
"""

from typing import Any


def is_gemma_3_it(model_name: str) -> bool:
    """Whether circuit-tracer takes a model of this name for a Gemma 3 chat model."""
    return "gemma-3" in model_name and model_name.endswith("-it")


def circuit_tracer_name(name: str, hf_config: Any, *, has_chat_template: bool) -> str:
    """The model's own name where circuit-tracer reads it right, else one with a suffix.

    Args:
        name: Hugging Face id, or the name of a directory.
        hf_config: its `transformers` configuration.
        has_chat_template: whether its tokenizer has one, by which a Gemma 3 of no official name
            is known for a chat model.
    """
    if hf_config.model_type not in ("gemma3", "gemma3_text"):
        return f"{name} ({hf_config.model_type})" if is_gemma_3_it(name) else name
    # The smallest base model is the one without a suffix.
    official = "gemma-3" in name and name.endswith(("-it", "-pt", "gemma-3-270m"))
    return name if official or not has_chat_template else f"{name} as gemma-3-it"
