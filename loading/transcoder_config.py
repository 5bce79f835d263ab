"""What the `config.yaml` of a set of transcoders says, checked. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from loading import WeightsError

CONFIG = "config.yaml"

Kind = Literal["transcoder_set", "cross_layer_transcoder"]
Activation = Literal["relu", "jump_relu", "topk"]

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
_READ_KEYS = {*_REQUIRED_KEYS, *_ACTIVATION_KEYS, "scan", "transcoders", "k"}
# Keys that describe a set and change nothing: what it is called, who made it from what, what its
# size is, where it comes from, and where its features are shown.
_DESCRIBING_KEYS = {
    *("id", "name", "description", "tags", "version", "release"),
    *("author", "authors", "citation", "license", "model_name", "dataset"),
    *("d_model", "d_transcoder", "n_layers", "dtype"),
    *("repo_id", "revision", "subfolder", "source", "url", "urls", "converted"),
    *("features", "features_dir"),
}


@dataclass(frozen=True)
class TranscoderConfig:
    """What a `config.yaml` of circuit-tracer says."""

    kind: Kind
    feature_input_hook: str
    feature_output_hook: str
    scan: str | list[str] | None
    listed: tuple[str, ...] | None  # an `hf://` address or path a layer; None: beside the file
    activation: Activation | None = None  # None: what the files' tensors imply
    k: int | None = None  # features that TopK keeps


def read_transcoder_config(folder: Path) -> TranscoderConfig:
    """Read the `config.yaml` of a set of transcoders.

    Raises:
        WeightsError: it isn't there, can't be read, lacks what is needed, or says what the worker
            can't follow.
    """
    file = folder / CONFIG
    try:
        config = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise WeightsError(
            f"{folder} holds no {CONFIG}: name transcoders in circuit-tracer's format"
        ) from None
    except OSError as error:
        raise WeightsError(f"{file} can't be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WeightsError(f"{file} is no YAML: replace it ({type(error).__name__})") from None
    config = config if isinstance(config, dict) else {}
    for key in _REQUIRED_KEYS:
        if not isinstance(config.get(key), str):
            raise WeightsError(f"{file} has no {key!r}: add it, as circuit-tracer's sets have it")
    kind: Any = config["model_kind"]
    if kind not in get_args(Kind):
        raise WeightsError(
            f"{file}: model_kind {kind!r} is not served; one of {', '.join(get_args(Kind))} is"
        )
    for key in config.keys() - _READ_KEYS - _DESCRIBING_KEYS:
        raise WeightsError(
            f"{file} has {key!r}, which the worker doesn't know and which may change what the "
            "features are: use a set without it, or where it changes nothing a copy without it"
        )
    return TranscoderConfig(
        kind,
        config["feature_input_hook"],
        config["feature_output_hook"],
        config.get("scan"),
        _listed(file, kind, config.get("transcoders")),
        _activation(file, config),
        _k(file, config.get("k")),
    )


def _activation(file: Path, config: Mapping[str, Any]) -> Activation | None:
    named = {key: config[key] for key in _ACTIVATION_KEYS if config.get(key) is not None}
    for key, name in named.items():
        if not isinstance(name, str) or name.lower() not in _ACTIVATIONS:
            raise WeightsError(
                f"{file}: {key} {name!r} is not served; one of relu, jump_relu, topk is"
            )
    found = {_ACTIVATIONS[name.lower()] for name in named.values()}
    if len(found) > 1:
        both = " and ".join(f"{key} {name!r}" for key, name in named.items())
        raise WeightsError(f"{file} has {both}: correct the one that is wrong")
    return next(iter(found), None)


def _k(file: Path, k: object) -> int | None:
    if k is not None and (not isinstance(k, int) or isinstance(k, bool)):
        raise WeightsError(f"{file} has k: {k!r}, which is no whole number: correct it")
    return k


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
    # circuit-tracer leaves out the last file of a cross-layer list, so some lists have one more.
    if kind == "cross_layer_transcoder" and listed[-1] in listed[:-1]:
        listed = listed[:-1]
    for i, name in enumerate(listed):
        if name in listed[:i]:
            raise WeightsError(f"{file} lists {name!r} twice: correct `transcoders`")
    return tuple(listed)
