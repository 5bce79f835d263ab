"""Which files make a model or a set of transcoders: chosen from the hub's, checked on a disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loading import WeightsError
from loading.tensor_layouts import CIRCUIT_TRACERS_OWN, TensorLayout
from loading.transcoder_config import CONFIG, TranscoderConfig, read_transcoder_config

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# Configuration, tokenizer and chat template, at the top of a repository.
_SMALL = re.compile(r"[^/]+\.(json|jinja|txt|model)")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


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
    layout = CIRCUIT_TRACERS_OWN[config.kind]
    count = max(_count(names, layout), layers or 1)
    return [name for layer in range(count) for name in layout.file_names(layer)]


def missing_transcoders(folder: Path, layers: int | None) -> list[str]:
    """The files without which a set of transcoders can't be loaded from a folder."""
    if not (folder / CONFIG).exists():
        return [CONFIG]
    there = {path.name for path in folder.iterdir() if path.exists()}
    needed = transcoder_files(there, read_transcoder_config(folder), layers)
    return [name for name in needed if name not in there]


def _count(names: Iterable[str], layout: TensorLayout) -> int:
    """One more than the highest layer that has a file."""
    pattern = re.compile(layout.files[0].format(r"(\d+)"))
    found = (pattern.fullmatch(name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
