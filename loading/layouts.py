"""Which files make a model or a set of transcoders: chosen from the hub's, checked on a disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from loading.references import WeightsError

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.yaml"

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# Configuration, tokenizer and chat template, at the top of a repository.
_SMALL = re.compile(r"[^/]+\.(json|jinja|txt|model)")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# The files of a layer, by kind of transcoder.
_LAYER_FILES = {
    "transcoder_set": ("layer_{}.safetensors",),
    "cross_layer_transcoder": ("W_enc_{}.safetensors", "W_dec_{}.safetensors"),
}

Kind = Literal["transcoder_set", "cross_layer_transcoder"]


@dataclass(frozen=True)
class TranscoderConfig:
    """What a `config.yaml` of circuit-tracer says."""

    kind: Kind
    feature_input_hook: str
    feature_output_hook: str
    scan: str | list[str] | None
    listed: tuple[str, ...] | None  # one `hf://` address or path a layer; None: beside the file


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
        WeightsError: it isn't there, can't be read, or lacks what is needed.
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
    kind = config["model_kind"]
    if kind not in _LAYER_FILES:
        raise WeightsError(
            f"{file}: model_kind {kind!r} is not served; one of {', '.join(_LAYER_FILES)} is"
        )
    listed = config.get("transcoders")
    return TranscoderConfig(
        kind,
        config["feature_input_hook"],
        config["feature_output_hook"],
        config.get("scan"),
        None if listed is None else tuple(map(str, listed)),
    )


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
    return [name.format(layer) for layer in range(count) for name in _LAYER_FILES[kind]]


def _count(names: set[str], kind: Kind) -> int:
    """One more than the highest layer that has a file."""
    pattern = re.compile(_LAYER_FILES[kind][0].format(r"(\d+)"))
    found = (pattern.fullmatch(name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
