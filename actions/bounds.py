"""Checks of features and positions against the loaded model and the prompt, before any work."""

from errors import InvalidInput
from loading.loaded_model import LoadedModel


def refuse_complete(loaded: LoadedModel, action: str) -> None:
    """Raise InvalidInput on a complete replacement model, for an action without one."""
    if loaded.is_complete:
        raise InvalidInput(
            f"action {action} is not served on complete replacement models, and "
            f"{loaded.entry.transcoder_label} is one; ask a worker with a set of transcoders alone"
        )


def check_feature(where: str, layer: int, index: int, loaded: LoadedModel) -> None:
    """Raise InvalidInput for a layer or an index that the model doesn't have."""
    n_layers = loaded.model.cfg.n_layers
    if layer >= n_layers:
        raise InvalidInput(
            f"{where}.layer is {layer}, the model has {n_layers} layers (0 to {n_layers - 1})"
        )
    n_features = loaded.n_features(layer)
    if index >= n_features:
        raise InvalidInput(
            f"{where}.index is {index}, the model has {n_features} features a layer "
            f"(0 to {n_features - 1})"
        )


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
