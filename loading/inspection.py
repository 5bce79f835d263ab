"""What the files of a set hold, from their headers: layout, sizes, activation; and what is wrong.

No tensor is read, so a set that can't be served is refused before gigabytes are loaded.
Importing this module imports no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from loading import WeightsError
from loading.bounds import MOST_FEATURES
from loading.layers import OPTIONAL, REQUIRED, Layer, StoredTensor, file_of, layout_of, sides
from loading.sources import TranscoderFiles
from loading.tensor_files import tensors_in
from loading.transcoder_folder import CONFIG, Activation

logger = logging.getLogger(__name__)

# What circuit-tracer takes where a TopK set has no k: facebook/crv-8b-instruct-transcoders.
DEFAULT_K = 128

_REMEDY = "correct the one that is wrong"


@dataclass(frozen=True)
class Contents:
    """A set of transcoders, as the headers of its files describe it."""

    files: TranscoderFiles
    layers: tuple[Layer, ...]
    d_model: int
    n_features: int
    skip: bool  # whether there are skip connections
    can_be_lazy: bool  # circuit-tracer can leave all layers on the disk in the layout they have
    activation: Activation
    k: int | None  # of TopK


def inspect(files: TranscoderFiles) -> Contents:
    """Read the headers of a set's files, and check that they are a set.

    Raises:
        WeightsError: a file can't be read, or lacks a tensor, or holds one of another shape or of
            a name that would be ignored; or its activation is not that of the configuration.
    """
    layers = tuple(_layer(files, number, paths) for number, paths in enumerate(files.layers))
    first = layers[0]
    if len(first.stored["W_enc"].spec.shape) != 2:
        raise WeightsError(f"{first.stored['W_enc']}, which is no matrix: replace it")
    n_features, d_model = first.spec("W_enc").shape
    if not 1 <= n_features <= MOST_FEATURES:
        raise WeightsError(
            f"{first.stored['W_enc']}, and a layer has from 1 to {MOST_FEATURES} features: "
            "replace it"
        )
    _check_alike(layers)
    for layer in layers:
        _check_shapes(files, layer, (len(layers), n_features, d_model))
    ks = _ks(files, layers)
    activation = _activation(files, first, ks)
    return Contents(
        files,
        layers,
        d_model,
        n_features,
        skip="W_skip" in first.stored,
        can_be_lazy=all(layer.layout.can_be_lazy for layer in layers),
        activation=activation,
        k=_k(files, ks, n_features) if activation == "topk" else None,
    )


def _layer(files: TranscoderFiles, number: int, paths: tuple[Path, ...]) -> Layer:
    held = {
        name: StoredTensor(path, name, spec)
        for path in paths
        for name, spec in tensors_in(path).items()
    }
    layout = layout_of(files.config.kind, paths[0], held)
    names = layout.names(number)
    for name, tensor in held.items():
        if name not in names.values():
            raise WeightsError(
                f"{tensor.path} holds {name!r}, which the worker doesn't know and would have to "
                "ignore: use a set in one of circuit-tracer's formats"
            )
    for name in REQUIRED:
        if names[name] not in held:
            raise WeightsError(f"{file_of(name, paths)} lacks {names[name]}: replace it")
    return Layer(number, layout, {n: held[stored] for n, stored in names.items() if stored in held})


def _check_alike(layers: tuple[Layer, ...]) -> None:
    """A threshold, a skip connection and a k are in all layers or in none."""
    for name in OPTIONAL:
        having = [layer for layer in layers if name in layer.stored]
        lacking = [layer for layer in layers if name not in layer.stored]
        if having and lacking:
            layer = lacking[0]
            stored = layer.layout.names(layer.number).get(name, name)
            raise WeightsError(
                f"{layer.stored['b_enc'].path} lacks {stored}, which "
                f"{having[0].stored[name].path} has: replace the one that is wrong"
            )


def _check_shapes(files: TranscoderFiles, layer: Layer, sizes: tuple[int, int, int]) -> None:
    n_layers, n_features, d_model = sizes
    decoder: tuple[int, ...] = (n_features, d_model)
    if files.config.kind == "cross_layer_transcoder":
        written = n_layers if layer.layout.all_decoders else n_layers - layer.number
        decoder = (n_features, written, d_model)
    expected: dict[str, tuple[tuple[int, ...], ...]] = {
        "W_enc": ((n_features, d_model),),
        "W_dec": (decoder,),
        "b_enc": ((n_features,),),
        "b_dec": ((d_model,),),
        "W_skip": ((d_model, d_model),),
        # One for all features, or one each.
        "threshold": ((n_features,), (1,), ()),
        "k": ((), (1,)),
    }
    for name, tensor in layer.stored.items():
        shapes = expected[name]
        if name in layer.layout.transposed:
            shapes = tuple(shape[::-1] for shape in shapes)
        if tensor.spec.shape not in shapes:
            raise WeightsError(
                f"{tensor}, and with the other tensors it has to be {sides(shapes[0])}: replace it"
            )


def _ks(files: TranscoderFiles, layers: tuple[Layer, ...]) -> dict[Path, int]:
    """How many features TopK keeps, by the file that says so."""
    found = {} if files.config.k is None else {files.folder / CONFIG: files.config.k}
    for layer in layers:
        if "k" in layer.stored:
            tensor = layer.stored["k"]
            with safe_open(tensor.path, framework="np") as opened:
                found[tensor.path] = int(opened.get_tensor(tensor.name).reshape(()))
    return found


def _activation(files: TranscoderFiles, first: Layer, ks: Mapping[Path, int]) -> Activation:
    """What the configuration says, and without that what the tensors imply, as in circuit-tracer.

    Raises:
        WeightsError: one contradicts the other.
    """
    file, has_threshold = files.folder / CONFIG, "threshold" in first.stored
    implied: Activation = (
        "topk" if "k" in first.stored else "jump_relu" if has_threshold else "relu"
    )
    activation = files.config.activation or implied
    if has_threshold != (activation == "jump_relu"):
        name = first.layout.names(0)["threshold"]
        holds = "holds a threshold" if has_threshold else f"lacks {name}"
        raise WeightsError(
            f"{first.stored['b_enc'].path} {holds}, and the activation of {file} says "
            f"{activation!r}: {_REMEDY}"
        )
    if ks and activation != "topk":
        where, k = next(iter(ks.items()))
        raise WeightsError(f"{where} has k: {k}, which goes with activation: topk alone: {_REMEDY}")
    return activation


def _k(files: TranscoderFiles, ks: Mapping[Path, int], n_features: int) -> int:
    """The one k of a TopK set: the configuration's, the files', or circuit-tracer's."""
    if not ks:
        file = files.folder / CONFIG
        logger.info("%s names no k: %d, as circuit-tracer takes it", file, DEFAULT_K)
        ks = {file: DEFAULT_K}
    (first, k), *others = ks.items()
    for other, different in others:
        if different != k:
            raise WeightsError(f"{other} has k: {different}, and {first} has k: {k}: {_REMEDY}")
    if not 1 <= k <= n_features:
        raise WeightsError(
            f"{first} has k: {k}, and TopK keeps from 1 to {n_features} of {n_features} features: "
            "correct it"
        )
    return k
