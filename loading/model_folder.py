"""A model's folder: what it has to hold, and what its config.json and index say.

Importing this module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeAlias

from loading import WeightsError
from loading.bounds import LAYERS, MOST_LAYERS, SIZES, brief
from loading.json_files import nested, read_json
from loading.needs import Needs

MODEL_CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# Configuration, tokenizer and chat template, at the top of a repository.
_SMALL = re.compile(r"[^/]+\.(json|jinja|txt|model)")
# Most models' names for their number of layers and their width, and GPT-2's.
_LAYER_COUNTS = ("num_hidden_layers", "n_layer")
_WIDTHS = ("hidden_size", "n_embd")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class ModelConfig:
    """What a model's config.json says, and of its language model how many layers and how wide."""

    folder: Path
    stored: dict[str, Any]
    n_layers: int | None
    d_model: int | None


ANY_MODEL = ModelConfig(Path(), {}, n_layers=None, d_model=None)  # where it isn't known yet

# Raises UnsupportedArchitectureError for a model that isn't served.
ConfigCheck: TypeAlias = Callable[[ModelConfig], None]


@dataclass(frozen=True)
class ModelNeeds(Needs):
    """Of a model: configuration, tokenizer, and weights in one format. No examples.

    `check` gets the configuration before weights are fetched, and of a folder that has all.
    """

    check: ConfigCheck | None = None

    def describing(self, names: Collection[str], /) -> Collection[str]:
        return [name for name in names if self.check and name == MODEL_CONFIG]

    def files(self, names: Collection[str], folder: Path, /) -> list[str]:
        if self.check and MODEL_CONFIG in names:
            self.check(read_model_config(folder))
        shards = [name for name in names if _SHARD.fullmatch(name)]
        weights = [SINGLE_FILE] if SINGLE_FILE in names or not shards else shards
        small = [name for name in names if _SMALL.fullmatch(name)]
        return sorted({*small, *weights})

    def missing(self, folder: Path) -> list[str]:
        missing = _absent([MODEL_CONFIG], folder)
        if len(_absent(_TOKENIZERS, folder)) == len(_TOKENIZERS):
            missing.append("tokenizer.json")
        if not (folder / SINGLE_FILE).exists():
            shards = read_index(folder).values() if (folder / INDEX).exists() else [SINGLE_FILE]
            missing += _absent(sorted(set(shards)), folder)
        if self.check and not missing:
            self.check(read_model_config(folder))
        return missing


def _absent(names: Collection[str], folder: Path) -> list[str]:
    return [name for name in names if not (folder / name).exists()]


def read_model_config(model: Path) -> ModelConfig:
    """The `config.json` of a model, whose numbers are none of a model that there can't be.

    Raises:
        WeightsError: it can't be read, or has such a number.
    """
    file = model / MODEL_CONFIG
    config = read_json(file)
    _check_sizes(file, config)
    text = config.get("text_config") or {}
    if not isinstance(text, dict):
        raise WeightsError(f"{file}: `text_config` is no object: replace it")
    for part in (config, text):
        for name in (*_LAYER_COUNTS, *_WIDTHS):
            if type(part.get(name)) not in (int, NoneType):
                raise WeightsError(
                    f"{file} has {name}: {brief(part[name])}, which is no whole number: correct it"
                )
    n_layers, d_model = (
        next((part[name] for part in (text, config) for name in names if name in part), None)
        for names in (_LAYER_COUNTS, _WIDTHS)
    )
    return ModelConfig(model, config, n_layers, d_model)


def _check_sizes(file: Path, config: Mapping[str, Any]) -> None:
    for _, part in nested(config):
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
