"""What the files of a set hold, told by their headers: layout, sizes, activation, what is amiss.

Nothing else is read, so a set that can't be served is refused before gigabytes are loaded.
Importing this module imports no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from loading import WeightsError, config_json
from loading.safetensors_files import Spec
from loading.sources import TranscoderFiles, Weights
from loading.tensor_files import tensors_in
from loading.tensor_layouts import OPTIONAL, REQUIRED, TensorLayout, file_of, layout_of
from loading.transcoder_config import CONFIG, Activation

logger = logging.getLogger(__name__)

# What circuit-tracer takes where a TopK set names none: facebook/crv-8b-instruct-transcoders.
DEFAULT_K = 128

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """The tensors of one layer by circuit-tracer's names."""

    layout: TensorLayout
    files: Mapping[str, Path]  # where each tensor is
    stored: Mapping[str, str]  # its name there
    specs: Mapping[str, Spec]  # as stored

    def shape(self, name: str) -> Shape:
        """The shape once read."""
        shape = self.specs[name].shape
        return shape[::-1] if name in self.layout.transposed else shape

    def named(self, name: str) -> str:
        """A tensor's file, name and shape, for messages."""
        return f"{self.files[name]} has {self.stored[name]} of {_sides(self.specs[name].shape)}"


@dataclass(frozen=True)
class Contents:
    """A set of transcoders, as the headers of its files describe it."""

    layers: tuple[Layer, ...]
    d_model: int
    n_features: int
    activation: Activation
    k: int | None  # of TopK

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def skip(self) -> bool:
        """Whether there are skip connections."""
        return "W_skip" in self.layers[0].specs


def inspect(files: TranscoderFiles) -> Contents:
    """Read the headers of a set's files, and check that they are a set.

    Raises:
        WeightsError: a file can't be read, or lacks a tensor, or holds one of another shape or of
            a name that would be ignored; or its activation is not that of the configuration.
    """
    layers = tuple(_layer(files, number, paths) for number, paths in enumerate(files.layers))
    first = layers[0]
    if len(first.shape("W_enc")) != 2:
        raise WeightsError(f"{first.named('W_enc')}, which is no matrix: replace it")
    n_features, d_model = first.shape("W_enc")
    _check_alike(layers)
    for number, layer in enumerate(layers):
        _check_shapes(files, number, layer, (len(layers), n_features, d_model))
    activation = _activation(files, first)
    k = _k(files, layers, n_features) if activation == "topk" else None
    return Contents(layers, d_model, n_features, activation, k)


def can_be_lazy(files: TranscoderFiles) -> bool:
    """Whether circuit-tracer can leave a set on the disk in the layout that it has.

    Raises:
        WeightsError: a file can't be read.
    """
    return all(
        layout_of(files.kind, path, () if path.suffix == ".npz" else tensors_in(path)).can_be_lazy
        for path, *_ in files.layers
    )


def check_fits(weights: Weights) -> None:
    """Raise WeightsError unless transcoders have as many layers as the model, of its width."""
    contents = inspect(weights.transcoders)
    n_layers, d_model = config_json.n_layers(weights.model), config_json.d_model(weights.model)
    if n_layers not in (None, contents.n_layers):
        raise WeightsError(
            f"the model has {n_layers} layers, its transcoders cover {contents.n_layers}: name "
            "the set that was trained on it"
        )
    if d_model not in (None, contents.d_model):
        raise WeightsError(
            f"d_model of the model is {d_model}, that of its transcoders {contents.d_model}: name "
            "the set that was trained on it"
        )


def _layer(files: TranscoderFiles, number: int, paths: tuple[Path, ...]) -> Layer:
    held = {name: (path, spec) for path in paths for name, spec in tensors_in(path).items()}
    layout = layout_of(files.kind, paths[0], held)
    names = layout.names(number)
    for name, (path, _) in held.items():
        if name not in names.values():
            raise WeightsError(
                f"{path} holds {name!r}, which the worker doesn't know and would have to ignore: "
                "use a set in one of circuit-tracer's formats"
            )
    for name in REQUIRED:
        if names[name] not in held:
            raise WeightsError(f"{file_of(name, paths)} lacks {names[name]}: replace it")
    there = {name: stored for name, stored in names.items() if stored in held}
    return Layer(
        layout,
        {name: held[stored][0] for name, stored in there.items()},
        there,
        {name: held[stored][1] for name, stored in there.items()},
    )


def _check_alike(layers: tuple[Layer, ...]) -> None:
    """A threshold, a skip connection and a k are in all layers or in none."""
    for name in OPTIONAL:
        having = [number for number, layer in enumerate(layers) if name in layer.specs]
        for number, layer in enumerate(layers):
            if having and number not in having:
                other = layers[having[0]]
                stored = layer.layout.names(number).get(name, name)
                raise WeightsError(
                    f"{layer.files['b_enc']} lacks {stored}, which {other.files[name]} has: "
                    "replace the one that is wrong"
                )


def _check_shapes(
    files: TranscoderFiles, number: int, layer: Layer, sizes: tuple[int, int, int]
) -> None:
    n_layers, n_features, d_model = sizes
    expected: dict[str, tuple[Shape, ...]] = {
        "W_enc": ((n_features, d_model),),
        "W_dec": ((n_features, d_model),),
        "b_enc": ((n_features,),),
        "b_dec": ((d_model,),),
        "W_skip": ((d_model, d_model),),
        # One for all features, or one each.
        "threshold": ((n_features,), (1,), ()),
        "k": ((), (1,)),
    }
    if files.kind == "cross_layer_transcoder":
        written = n_layers if layer.layout.all_decoders else n_layers - number
        expected["W_dec"] = ((n_features, written, d_model),)
    for name in layer.specs:
        if layer.shape(name) not in expected[name]:
            wanted = expected[name][0]
            stored = wanted[::-1] if name in layer.layout.transposed else wanted
            raise WeightsError(
                f"{layer.named(name)}, and with the other tensors it has to be {_sides(stored)}: "
                "replace it"
            )


def _activation(files: TranscoderFiles, first: Layer) -> Activation:
    """What the configuration says, and without that what the tensors imply, as in circuit-tracer.

    Raises:
        WeightsError: one contradicts the other.
    """
    has_threshold, has_k = "threshold" in first.specs, "k" in first.specs
    named, file = files.config.activation, files.folder / CONFIG
    activation: Activation = named or (
        "topk" if has_k else "jump_relu" if has_threshold else "relu"
    )
    wrong = "correct the one that is wrong"
    if has_threshold and activation != "jump_relu":
        raise WeightsError(
            f"{first.files['threshold']} holds a threshold, and the activation of {file} says "
            f"{activation!r}: {wrong}"
        )
    if activation == "jump_relu" and not has_threshold:
        raise WeightsError(
            f"{first.files['b_enc']} lacks {first.layout.names(0)['threshold']}, and the "
            f"activation of {file} is 'jump_relu': {wrong}"
        )
    if activation != "topk" and (has_k or files.config.k is not None):
        where = first.files["k"] if has_k else file
        k = _held_k(first) if has_k else files.config.k
        raise WeightsError(f"{where} has k: {k}, which goes with activation: topk alone: {wrong}")
    return activation


def _k(files: TranscoderFiles, layers: tuple[Layer, ...], n_features: int) -> int:
    """How many features TopK keeps: the configuration's, the files', or circuit-tracer's."""
    file = files.folder / CONFIG
    said = {} if files.config.k is None else {file: files.config.k}
    said |= {layer.files["k"]: _held_k(layer) for layer in layers if "k" in layer.specs}
    if not said:
        logger.info("%s names no k: %d, as circuit-tracer takes it", file, DEFAULT_K)
        said = {file: DEFAULT_K}
    (first, k), *others = said.items()
    for other, different in others:
        if different != k:
            raise WeightsError(
                f"{other} has k: {different}, and {first} has k: {k}: correct the one that is wrong"
            )
    if not 1 <= k <= n_features:
        raise WeightsError(
            f"{first} has k: {k}, and TopK keeps from 1 to {n_features} of {n_features} features: "
            "correct it"
        )
    return k


def _held_k(layer: Layer) -> int:
    with safe_open(layer.files["k"], framework="np") as opened:
        return int(opened.get_tensor(layer.stored["k"]).reshape(()))


def _sides(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "one number"
