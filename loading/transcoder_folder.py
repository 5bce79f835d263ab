"""A folder of transcoders: what its config.yaml says, and the files that it has to hold.

Importing this module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import yaml

from loading import WeightsError
from loading.bounds import MOST_FEATURES, MOST_LAYERS, YAML_BYTES, brief
from loading.json_files import check_file, too_deep
from loading.needs import Needs

CONFIG = "config.yaml"

Kind = Literal["transcoder_set", "cross_layer_transcoder"]
Activation = Literal["relu", "jump_relu", "topk"]
# Each layer's files.
LayerFiles: TypeAlias = tuple[tuple[Path, ...], ...]

# The names of a layer's files where config.yaml lists none; "{}" stands for the layer.
_FILES: dict[Kind, tuple[str, ...]] = {
    "transcoder_set": ("layer_{}.safetensors",),
    "cross_layer_transcoder": ("W_enc_{}.safetensors", "W_dec_{}.safetensors"),
}
# The names of activations, in small letters.
_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "jumprelu": "jump_relu",
    "jump_relu": "jump_relu",
    "topk": "topk",
    "top_k": "topk",
}
_ACTIVATION_KEYS = ("activation", "activation_function")
_REQUIRED_KEYS = ("model_kind", "feature_input_hook", "feature_output_hook")
# Keys that describe a set and change nothing: what it is called, who made it from what, what its
# size is, where it comes from, and where its features are shown.
_DESCRIBING_KEYS = {
    *("id", "name", "description", "tags", "version", "release"),
    *("author", "authors", "citation", "license", "model_name", "dataset"),
    *("d_model", "d_transcoder", "n_layers", "dtype"),
    *("repo_id", "revision", "subfolder", "source", "url", "urls", "converted"),
    *("features", "features_dir"),
}
_KNOWN_KEYS = {*_REQUIRED_KEYS, *_ACTIVATION_KEYS, "scan", "transcoders", "k", *_DESCRIBING_KEYS}


@dataclass(frozen=True)
class SetConfig:
    """What a `config.yaml` of circuit-tracer says."""

    kind: Kind
    feature_input_hook: str
    feature_output_hook: str
    scan: str | list[str] | None
    listed: tuple[str, ...] | None  # an `hf://` address or path a layer; None: beside the file
    activation: Activation | None = None  # None: what the files' tensors imply
    k: int | None = None  # features that TopK keeps


@dataclass(frozen=True)
class TranscoderNeeds(Needs):
    """Of a set of transcoders: `config.yaml`, and the files of its layers that are beside it.

    Files that `config.yaml` lists by address or path are looked for once it has been read.
    """

    n_layers: int | None = None  # of the model; None: as many as there are files for

    def describing(self, _names: Collection[str], /) -> Collection[str]:
        return (CONFIG,)

    def files(self, names: Collection[str], folder: Path, /) -> list[str]:
        config = read_set_config(folder)
        if config.listed is not None:
            check_shape(len(config.listed), self.n_layers)
            return [CONFIG]
        n_layers = max(layers_among(names, config.kind), self.n_layers or 1)
        check_shape(n_layers, self.n_layers)  # of those that are too few the first one is missing
        layers = layer_files(folder, config.kind, n_layers)
        return [CONFIG, *(path.name for layer in layers for path in layer)]

    def missing(self, folder: Path) -> list[str]:
        if not (folder / CONFIG).exists():
            return [CONFIG]
        there = [path.name for path in folder.iterdir() if path.exists()]
        return [name for name in self.files(there, folder) if not (folder / name).exists()]


def check_shape(
    covered: int, n_layers: int | None, width: int | None = None, d_model: int | None = None
) -> None:
    """Raise WeightsError unless transcoders have as many layers as the model, of its width.

    Args:
        covered, width: of the transcoders.
        n_layers, d_model: of the model, None where it isn't known.
    """
    if n_layers not in (None, covered):
        raise WeightsError(
            f"the model has {n_layers} layers, its transcoders cover {covered}: name "
            "the set that was trained on it"
        )
    if d_model not in (None, width):
        raise WeightsError(
            f"d_model of the model is {d_model}, that of its transcoders {width}: name "
            "the set that was trained on it"
        )


def layer_files(folder: Path, kind: Kind, n_layers: int) -> LayerFiles:
    """Each layer's files in a folder whose config.yaml lists none."""
    return tuple(
        tuple(folder / name.format(layer) for name in _FILES[kind]) for layer in range(n_layers)
    )


def layers_among(names: Collection[str], kind: Kind) -> int:
    """One more than the highest layer that has a file among these names.

    Raises:
        WeightsError: there can't be as many layers.
    """
    first, *_ = _FILES[kind]
    pattern = re.compile(first.format(r"([0-9]+)"))
    numbers = [match[1] for name in names if (match := pattern.fullmatch(name))]
    for number in numbers:
        if len(number) > len(str(MOST_LAYERS)) or int(number) >= MOST_LAYERS:
            raise WeightsError(
                f"{first.format(number[:20])} is of a layer beyond the {MOST_LAYERS} that are the "
                "most: remove it"
            )
    return max((int(number) + 1 for number in numbers), default=0)


def read_set_config(folder: Path) -> SetConfig:
    """Read the `config.yaml` of a set of transcoders.

    Raises:
        WeightsError: it isn't there, can't be read, lacks what is needed, or says what the worker
            can't follow.
    """
    file = folder / CONFIG
    try:
        config = read_yaml(file)
    except FileNotFoundError:
        raise WeightsError(
            f"{folder} holds no {CONFIG}: name transcoders in circuit-tracer's format"
        ) from None
    except OSError as error:
        raise WeightsError(f"{file} can't be read: {error.strerror}") from None
    config = config if isinstance(config, dict) else {}
    for key in _REQUIRED_KEYS:
        if not isinstance(config.get(key), str):
            raise WeightsError(f"{file} has no {key!r}: add it, as circuit-tracer's sets have it")
    kind = config["model_kind"]
    if kind not in get_args(Kind):
        raise WeightsError(
            f"{file}: model_kind {brief(kind)} is not served; one of {', '.join(get_args(Kind))} is"
        )
    for key in config.keys() - _KNOWN_KEYS:
        raise WeightsError(
            f"{file} has {brief(key)}, which the worker doesn't know and which may change what the "
            "features are: use a set without it, or where it changes nothing a copy without it"
        )
    k = _k(file, config.get("k"))
    return SetConfig(
        kind,
        config["feature_input_hook"],
        config["feature_output_hook"],
        _scan(file, config.get("scan")),
        _listed(file, kind, config.get("transcoders")),
        _activation(file, config),
        k,
    )


def _k(file: Path, k: object) -> int | None:
    if k is not None and type(k) is not int:
        raise WeightsError(f"{file} has k: {brief(k)}, which is no whole number: correct it")
    if k is not None and abs(k) > MOST_FEATURES:
        raise WeightsError(
            f"{file} has k: {brief(k)}, and no layer has more features than {MOST_FEATURES}: "
            "correct it"
        )
    return k


def _scan(file: Path, scan: object) -> str | list[str] | None:
    names = scan if isinstance(scan, list) else [scan]
    if scan is not None and not all(isinstance(name, str) for name in names):
        raise WeightsError(f"{file}: `scan` is no name and no list of names: correct it")
    return cast(Any, scan)


def _activation(file: Path, config: Mapping[str, Any]) -> Activation | None:
    named = {key: config[key] for key in _ACTIVATION_KEYS if config.get(key) is not None}
    for key, name in named.items():
        if not isinstance(name, str) or name.lower() not in _ACTIVATIONS:
            raise WeightsError(
                f"{file}: {key} {brief(name)} is not served; one of relu, jump_relu, topk is"
            )
    found = {_ACTIVATIONS[name.lower()] for name in named.values()}
    if len(found) > 1:
        both = " and ".join(f"{key} {name!r}" for key, name in named.items())
        raise WeightsError(f"{file} has {both}: correct the one that is wrong")
    return next(iter(found), None)


def _listed(file: Path, kind: Kind, listed: object) -> tuple[str, ...] | None:
    if listed is None:
        return None
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise WeightsError(
            f"{file}: `transcoders` is no list of an address or a path a layer: correct it"
        )
    if not listed:
        raise WeightsError(
            f"{file}: `transcoders` is empty: name a file a layer, or leave it out where the files "
            "are beside it"
        )
    if len(listed) > MOST_LAYERS + 1:
        raise WeightsError(
            f"{file} lists {len(listed)} files, and {MOST_LAYERS} layers are the most: correct "
            "`transcoders`"
        )
    # circuit-tracer leaves out the last file of a cross-layer list, so some lists have one more.
    if kind == "cross_layer_transcoder" and listed[-1] in listed[:-1]:
        listed = listed[:-1]
    for i, name in enumerate(listed):
        if name in listed[:i]:
            raise WeightsError(f"{file} lists {name!r} twice: correct `transcoders`")
    return tuple(listed)


def read_yaml(file: Path) -> object:
    """What a YAML file holds.

    Raises:
        WeightsError: it is too large, has an alias, or is no YAML.
        OSError: it can't be read.
    """
    check_file(file, YAML_BYTES)
    try:
        return yaml.load(file.read_text(), _WithoutAliases)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise too_deep(file) from None
    except _AliasError:
        raise WeightsError(
            f"{file} has an alias, and a few of them can stand for gigabytes: write out what it "
            "stands for"
        ) from None
    except OSError:
        raise
    except Exception as error:  # PyYAML raises many kinds for values that it can't make
        raise WeightsError(f"{file} is no YAML: replace it ({type(error).__name__})") from None


class _AliasError(Exception):
    """A YAML file has an alias."""


class _WithoutAliases(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _AliasError
        return super().compose_node(parent, index)
