"""Which files make a model or a set of transcoders: chosen from the hub's, checked on a disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from loading.references import WeightsError

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.yaml"

Kind = Literal["transcoder_set", "cross_layer_transcoder"]
Activation = Literal["relu", "jump_relu", "topk"]

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# Configuration, tokenizer and chat template, at the top of a repository.
_SMALL = re.compile(r"[^/]+\.(json|jinja|txt|model)")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# The files of a layer, by kind of transcoder.
LAYER_FILES = {
    "transcoder_set": ("layer_{}.safetensors",),
    "cross_layer_transcoder": ("W_enc_{}.safetensors", "W_dec_{}.safetensors"),
}

# What each name for an activation means, in small letters.
_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "jumprelu": "jump_relu",
    "jump_relu": "jump_relu",
    "topk": "topk",
    "top_k": "topk",
}
_ACTIVATION_KEYS = ("activation", "activation_function")
# The keys of a configuration that are read, and those that describe and change nothing.
_READ = {
    "model_kind",
    "feature_input_hook",
    "feature_output_hook",
    "scan",
    "transcoders",
    "k",
    *_ACTIVATION_KEYS,
}
_DESCRIBING = {
    "author",
    "authors",
    "citation",
    "converted",
    "d_model",
    "d_transcoder",
    "dataset",
    "description",
    "dtype",
    "features",
    "features_dir",
    "id",
    "license",
    "model_name",
    "n_layers",
    "name",
    "release",
    "repo_id",
    "revision",
    "source",
    "subfolder",
    "tags",
    "url",
    "urls",
    "version",
}


@dataclass(frozen=True)
class TranscoderConfig:
    """What a `config.yaml` of circuit-tracer says."""

    kind: Kind
    feature_input_hook: str
    feature_output_hook: str
    scan: str | list[str] | None
    listed: tuple[str, ...] | None  # one `hf://` address or path a layer; None: beside the file
    activation: Activation | None = None  # None: as the files have thresholds or not
    k: int | None = None  # features that TopK keeps


def model_files(names: Iterable[str]) -> list[str]:
    """What is needed of a model's repository: no second format of the weights, no examples."""
    names = set(names)
    weights = {SINGLE_FILE} & names or {name for name in names if _SHARD.fullmatch(name)}
    return sorted({name for name in names if _SMALL.fullmatch(name)} | weights)


def missing_from_model(folder: Path) -> list[str]:
    """The files without which a model can't be loaded from a folder."""
    missing = [] if (folder / "config.json").exists() else ["config.json"]
    if not any((folder / name).exists() for name in _TOKENIZERS):
        missing.append("tokenizer.json")
    if (folder / SINGLE_FILE).exists():
        return missing
    if not (folder / INDEX).exists():
        return [*missing, SINGLE_FILE]
    shards = set(read_json(folder / INDEX).get("weight_map", {}).values())
    return missing + sorted(shard for shard in shards if not (folder / shard).exists())


def n_layers(folder: Path) -> int | None:
    """Layers of the model in a folder, by its configuration."""
    config = _model_config(folder)
    return config.get("num_hidden_layers", config.get("n_layer"))


def stored_dtype(folder: Path) -> str:
    """The dtype that a model's configuration names, bfloat16 where it names none that is served."""
    config = _model_config(folder)
    named = config.get("dtype", config.get("torch_dtype"))
    return named if named in {"float32", "float16", "bfloat16"} else "bfloat16"


def d_model(folder: Path) -> int | None:
    """Width of the residual stream of the model in a folder, by its configuration."""
    config = _model_config(folder)
    return config.get("hidden_size", config.get("n_embd"))


def _model_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    return config | (config.get("text_config") or {})


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise WeightsError(f"{file} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise WeightsError(f"{file} is no JSON: replace it ({error})") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{file} is no JSON object: replace it")
    return content


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
    for key in ("model_kind", "feature_input_hook", "feature_output_hook"):
        if not isinstance(config.get(key), str):
            raise WeightsError(f"{file} has no {key!r}: add it, as circuit-tracer's sets have it")
    kind: Any = config["model_kind"]
    if kind not in LAYER_FILES:
        raise WeightsError(
            f"{file}: model_kind {kind!r} is not served; one of {', '.join(LAYER_FILES)} is"
        )
    for key in config.keys() - _READ - _DESCRIBING:
        raise WeightsError(
            f"{file} has {key!r}, which the worker doesn't know and which may change what the "
            "features are: use a set without it, or where it changes nothing a copy without it"
        )
    activation = _activation(file, config)
    return TranscoderConfig(
        kind,
        config["feature_input_hook"],
        config["feature_output_hook"],
        config.get("scan"),
        _listed(file, kind, config.get("transcoders")),
        activation,
        _k(file, config.get("k")),
    )


def _activation(file: Path, config: Mapping[str, Any]) -> Activation | None:
    named = {key: config[key] for key in _ACTIVATION_KEYS if config.get(key) is not None}
    meant = {}
    for key, name in named.items():
        known = _ACTIVATIONS.get(name.lower()) if isinstance(name, str) else None
        if known is None:
            raise WeightsError(
                f"{file}: {key} {name!r} is not served; one of relu, jump_relu, topk is"
            )
        meant[key] = known
    if len(set(meant.values())) > 1:
        both = " and ".join(f"{key} {name!r}" for key, name in named.items())
        raise WeightsError(f"{file} has {both}: correct the one that is wrong")
    return next(iter(meant.values()), None)


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
    names = tuple(listed)
    # circuit-tracer leaves out the last file of a cross-layer list, so some lists have one more.
    if kind == "cross_layer_transcoder" and names[-1:] and names[-1] in names[:-1]:
        names = names[:-1]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise WeightsError(f"{file} lists {name!r} twice: correct `transcoders`")
    return names


def transcoder_files(
    names: Iterable[str], config: TranscoderConfig, layers: int | None
) -> list[str]:
    """What is needed of a set's repository besides its `config.yaml`, there or not.

    Args:
        names: what there is.
        layers: how many the model has; None: as many as there are files for.
    """
    if config.listed is not None:
        return []
    return _expected(config.kind, max(_count(set(names), config.kind), layers or 1))


def missing_transcoders(folder: Path, layers: int | None) -> list[str]:
    """The files without which a set of transcoders can't be loaded from a folder."""
    if not (folder / CONFIG).exists():
        return [CONFIG]
    there = {path.name for path in folder.iterdir() if path.exists()}
    needed = transcoder_files(there, read_transcoder_config(folder), layers)
    return [name for name in needed if name not in there]


def _expected(kind: Kind, count: int) -> list[str]:
    return [name.format(layer) for layer in range(count) for name in LAYER_FILES[kind]]


def _count(names: set[str], kind: Kind) -> int:
    """One more than the highest layer that has a file."""
    pattern = re.compile(LAYER_FILES[kind][0].format(r"(\d+)"))
    found = (pattern.fullmatch(name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
