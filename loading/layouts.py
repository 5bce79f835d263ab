"""Which files make a model or a set of transcoders: chosen from the hub's, checked on a disk."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from loading.config_json import read_json
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
