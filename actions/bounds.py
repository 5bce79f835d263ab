"""Checks of positions and numbers against the loaded model and the prompt, before any work."""

import steering
from errors import InvalidInput
from loading.loaded_model import LoadedModel


def check_position(where: str, position: int, n_tokens: int) -> None:
    """Raise InvalidInput for a position that the prompt doesn't have."""
    steering.refuse_beyond(where, position, n_tokens, "the prompt has {} tokens")


def check_n_tokens(field: str, asked: int, loaded: LoadedModel) -> None:
    """Raise InvalidInput when more tokens are asked for than there are."""
    if asked > loaded.d_vocab:
        raise InvalidInput(
            f"{field} is {asked}, the model's vocabulary has {loaded.d_vocab} tokens"
        )
