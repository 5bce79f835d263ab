"""The folders of models and of transcoders: what they have to hold, and what their settings say.

That goes for the hub and a disk alike. Importing this module imports no torch.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Protocol, cast, get_args

import yaml

from loading import WeightsError
from loading.bounds import (
    JSON_BYTES,
    JSON_DEPTH,
    LAYERS,
    MOST_FEATURES,
    MOST_LAYERS,
    SIZES,
    YAML_BYTES,
    brief,
)
from loading.layers import CIRCUIT_TRACERS_OWN, Kind

CONFIG = "config.yaml"  # of a set of transcoders
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# Configuration, tokenizer and chat template, at the top of a repository.
_SMALL = re.compile(r"[^/]+\.(json|jinja|txt|model)")
# Most models' name for their number of layers, and GPT-2's.
_LAYER_COUNTS = ("num_hidden_layers", "n_layer")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")

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


class Needs(Protocol):
    """What a folder of a model, or of a set of transcoders, has to hold."""

    def describing(self, names: Collection[str], /) -> Collection[str]:
        """The files that say which others are needed, where the hub has `names`."""

    def files(self, names: Collection[str], folder: Path, /) -> list[str]:
        """The files to download, those included that the hub lacks.

        Args:
            names: what the hub has.
            folder: here; it holds those that are `describing`.
        """

    def missing(self, folder: Path) -> list[str]:
        """The needed files that a folder here lacks."""


@dataclass(frozen=True)
class ModelNeeds:
    """Of a model: configuration, tokenizer, and weights in one format. No examples."""

    def describing(self, _names: Collection[str], /) -> Collection[str]:
        return ()

    def files(self, names: Collection[str], _folder: Path, /) -> list[str]:
        shards = [name for name in names if _SHARD.fullmatch(name)]
        weights = [SINGLE_FILE] if SINGLE_FILE in names or not shards else shards
        small = [name for name in names if _SMALL.fullmatch(name)]
        return sorted({*small, *weights})

    def missing(self, folder: Path) -> list[str]:
        missing = _absent(["config.json"], folder)
        if len(_absent(_TOKENIZERS, folder)) == len(_TOKENIZERS):
            missing.append("tokenizer.json")
        if (folder / SINGLE_FILE).exists():
            return missing
        if not (folder / INDEX).exists():
            return [*missing, SINGLE_FILE]
        return missing + _absent(sorted(set(read_index(folder).values())), folder)


@dataclass(frozen=True)
class TranscoderNeeds:
    """Of a set of transcoders: `config.yaml`, and the files of its layers that are beside it.

    Files that `config.yaml` lists by address or path are looked for once it has been read.
    """

    n_layers: int | None = None  # of the model; None: as many as there are files for

    def describing(self, _names: Collection[str], /) -> Collection[str]:
        return (CONFIG,)

    def files(self, names: Collection[str], folder: Path, /) -> list[str]:
        config = read_transcoder_config(folder)
        if config.listed is not None:
            return [CONFIG]
        layout = CIRCUIT_TRACERS_OWN[config.kind]
        count = max(layout.count_layers(names), self.n_layers or 1)
        return [CONFIG, *(path.name for layer in layout.paths(folder, count) for path in layer)]

    def missing(self, folder: Path) -> list[str]:
        if not (folder / CONFIG).exists():
            return [CONFIG]
        there = [path.name for path in folder.iterdir() if path.exists()]
        return _absent(self.files(there, folder), folder)


@dataclass(frozen=True)
class NamedNeeds:
    """Files that are known by name."""

    names: tuple[str, ...]

    def describing(self, _names: Collection[str], /) -> Collection[str]:
        return ()

    def files(self, _names: Collection[str], _folder: Path, /) -> list[str]:
        return list(self.names)

    def missing(self, folder: Path) -> list[str]:
        return _absent(self.names, folder)


def _absent(names: Collection[str], folder: Path) -> list[str]:
    return [name for name in names if not (folder / name).exists()]


def check_file(file: Path, most_bytes: int) -> None:
    """Raise WeightsError unless a file is one, and no larger than that.

    Raises:
        OSError: it isn't there, or can't be looked at.
    """
    status = file.stat()
    # Opening a directory says that it is one; opening a pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise WeightsError(f"{file} is no regular file: replace it")
    if status.st_size > most_bytes:
        raise WeightsError(
            f"{file} has {status.st_size} bytes, and {most_bytes} are the most for such a file: "
            "replace it"
        )


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        WeightsError: the file can't be read, is too large, or holds something else.
    """
    try:
        check_file(file, JSON_BYTES)
        content = json.loads(file.read_text())
    except OSError as error:
        raise WeightsError(f"{file} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise WeightsError(f"{file} is no JSON: replace it ({error})") from None
    except RecursionError:
        raise _too_deep(file) from None
    if not isinstance(content, dict):
        raise WeightsError(f"{file} is no JSON object: replace it")
    for depth, _ in _nested(content):
        if depth > JSON_DEPTH:
            raise _too_deep(file)
    return content


def _nested(content: object) -> Iterator[tuple[int, Any]]:
    """The objects and lists of what JSON held, each with how deep it is."""
    left: list[tuple[int, Any]] = [(1, content)]
    while left:
        depth, part = left.pop()
        yield depth, part
        inner = part.values() if isinstance(part, dict) else part
        left += [(depth + 1, value) for value in inner if isinstance(value, dict | list)]


def _too_deep(file: Path) -> WeightsError:
    return WeightsError(f"{file} is nested too deeply to be read: replace it")


def read_model_config(model: Path) -> dict[str, Any]:
    """The `config.json` of a model, whose numbers are none of a model that there can't be.

    Raises:
        WeightsError: it can't be read, or has such a number.
    """
    file = model / "config.json"
    config = read_json(file)
    _check_sizes(file, config)
    text = config.get("text_config") or {}
    if not isinstance(text, dict):
        raise WeightsError(f"{file}: `text_config` is no object: replace it")
    for part in (config, text):
        for name in _LAYER_COUNTS:
            if type(part.get(name)) not in (int, NoneType):
                raise WeightsError(
                    f"{file} has {name}: {brief(part[name])}, which is no whole number: correct it"
                )
    return config


def _check_sizes(file: Path, config: Mapping[str, Any]) -> None:
    for _, part in _nested(config):
        for name, value in part.items() if isinstance(part, dict) else ():
            bound = SIZES.get(name, MOST_LAYERS if name.endswith(LAYERS) else None)
            if isinstance(value, int | float) and bound is not None and abs(value) > bound:
                raise WeightsError(
                    f"{file} has {brief(name)}: {brief(value)}, and {bound} is the most: correct it"
                )


def read_index(model: Path) -> dict[str, str]:
    """The file of each tensor, as the index of a model's shards has it.

    Raises:
        WeightsError: it can't be read, or names something else than files beside it.
    """
    file = model / INDEX
    files = read_json(file).get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in files.values()
    ):
        raise WeightsError(f"{file}: `weight_map` is no object of files beside it: replace it")
    return files


def count_layers(model: Path) -> int | None:
    """Layers of a model's language model, by its configuration.

    Raises:
        WeightsError: as `read_model_config`.
    """
    config = read_model_config(model)
    config |= config.get("text_config") or {}
    return next((config[name] for name in _LAYER_COUNTS if name in config), None)


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
        raise _too_deep(file) from None
    except _AliasError:
        raise WeightsError(
            f"{file} has an alias, and a few of them can stand for gigabytes: write out what it "
            "stands for"
        ) from None
    except OSError:
        raise
    except Exception as error:  # PyYAML raises many kinds for values that it can't make
        raise WeightsError(f"{file} is no YAML: replace it ({type(error).__name__})") from None


def read_transcoder_config(folder: Path) -> TranscoderConfig:
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
    kind, k = config["model_kind"], config.get("k")
    if kind not in get_args(Kind):
        raise WeightsError(
            f"{file}: model_kind {brief(kind)} is not served; one of {', '.join(get_args(Kind))} is"
        )
    for key in config.keys() - _KNOWN_KEYS:
        raise WeightsError(
            f"{file} has {brief(key)}, which the worker doesn't know and which may change what the "
            "features are: use a set without it, or where it changes nothing a copy without it"
        )
    if k is not None and (not isinstance(k, int) or isinstance(k, bool)):
        raise WeightsError(f"{file} has k: {brief(k)}, which is no whole number: correct it")
    if isinstance(k, int) and abs(k) > MOST_FEATURES:
        raise WeightsError(
            f"{file} has k: {brief(k)}, and no layer has more features than {MOST_FEATURES}: "
            "correct it"
        )
    return TranscoderConfig(
        kind,
        config["feature_input_hook"],
        config["feature_output_hook"],
        _scan(file, config.get("scan")),
        _listed(file, kind, config.get("transcoders")),
        _activation(file, config),
        k,
    )


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


class _AliasError(Exception):
    """A YAML file has an alias."""


class _WithoutAliases(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _AliasError
        return super().compose_node(parent, index)
