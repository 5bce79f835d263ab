"""Checks of positions and numbers against the loaded model and the prompt, before any work."""

from errors import InvalidInput
from loading.loaded_model import LoadedModel


def check_position(where: str, position: int, n_tokens: int) -> None:
    """Raise InvalidInput for a position that the prompt doesn't have."""
    if position >= n_tokens:
        raise InvalidInput(
            f"{where} is {position}, the prompt has {n_tokens} tokens (0 to {n_tokens - 1})"
        )


def check_top_k(top_k: int, loaded: LoadedModel) -> None:
    """Raise InvalidInput when more tokens are asked for than there are."""
    if top_k > loaded.d_vocab:
        raise InvalidInput(f"top_k is {top_k}, the model's vocabulary has {loaded.d_vocab} tokens")
