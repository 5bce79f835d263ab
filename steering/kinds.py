"""Which feature a layer of the model, an index and a kind mean.

A complete replacement model has two features for most layers and indices: one of the transcoder in
the place of the MLP, and one of the Lorsa in the place of attention.
"""

from collections.abc import Sequence
from typing import Any, Literal

from attribution.complete.modules import CompleteModel
from errors import InvalidInput
from steering.readers import Feature

Kind = Literal["lorsa", "transcoder"]
_KINDS: tuple[Kind, Kind] = ("lorsa", "transcoder")  # in the order of a layer's sublayers


def n_layers(model: Any) -> int:
    """How many layers steering counts: those of the transcoders, or all sublayers."""
    n: int = model.cfg.n_layers
    return 2 * n if isinstance(model, CompleteModel) else n


def n_features(model: Any, layer: int) -> int:
    """How many features a layer of steering has."""
    if isinstance(model, CompleteModel):
        return model.n_features(layer)
    n: int = model.transcoders.d_transcoder
    return n


def n_context(model: Any) -> int:
    """Most tokens of prompt and continuation together."""
    n: int = model.n_ctx if isinstance(model, CompleteModel) else model.cfg.n_ctx
    return n


def layers_meant(model: Any, layer: int, index: int, kind: Kind | None, name: str) -> list[int]:
    """The layers, as steering counts them, that have a feature which may be meant.

    Args:
        layer: one of the model's.
        kind: None: either. They come in the order of the kinds, attention first.
        name: the feature's in the request, for errors: `features[0]`.

    Raises:
        InvalidInput: the model has no such layer, kind or feature.
    """
    # Asked for each of up to ten thousand features: words are made only for an error.
    if not 0 <= layer < model.cfg.n_layers:
        refuse_beyond(f"{name}.layer", layer, model.cfg.n_layers, "the model has {} layers")
    if isinstance(model, CompleteModel):
        layers = [2 * layer + n for n, its in enumerate(_KINDS) if kind in (None, its)]
    elif kind == "lorsa":
        raise InvalidInput(
            f"{name}.kind is 'lorsa', but the model's set has no attention features (Lorsas); "
            "leave kind out"
        )
    else:
        layers = [layer]
    meant = [its for its in layers if 0 <= index < n_features(model, its)]
    if not meant:
        most = max(n_features(model, its) for its in layers)
        refuse_beyond(f"{name}.index", index, most, f"the model has {{}} features in layer {layer}")
    return meant


def active_one(
    sites: Sequence[Feature], activations: Sequence[float], name: str, where: str
) -> Feature:
    """Of the features that may be meant, the one that is active.

    Args:
        sites: one in each of the layers that `layers_meant` gives.
        activations: of each.
        name: as in `layers_meant`.
        where: what the request calls the position where they are read.

    Raises:
        InvalidInput: both features are active, or neither.
    """
    if len(sites) == 1:
        return sites[0]
    active = [site for site, value in zip(sites, activations, strict=True) if value != 0]
    if len(active) != 1:
        which = "both are" if active else "neither is"
        raise InvalidInput(
            f"{name}.kind is needed: a transcoder and a Lorsa have a feature of this layer and "
            f"index, and {which} active at {where}; give 'transcoder' or 'lorsa'"
        )
    return active[0]


def refuse_beyond(field: str, value: int, bound: int, what_there_is: str) -> None:
    """Raise InvalidInput unless a value is from 0 to below its bound."""
    if not 0 <= value < bound:
        there_is = what_there_is.format(bound)
        raise InvalidInput(f"{field} is {value}, {there_is} (0 to {bound - 1})")
