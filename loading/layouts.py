"""Which files make a model or a set of transcoders, on the hub and on a disk alike.

Importing this module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from loading.config_json import read_json
from loading.tensor_layouts import CIRCUIT_TRACERS_OWN
from loading.transcoder_config import CONFIG, read_transcoder_config

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# Configuration, tokenizer and chat template, at the top of a repository.
_SMALL = re.compile(r"[^/]+\.(json|jinja|txt|model)")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


# Each of the three kinds of needs has
#   describing: the files that say which others are needed,
#   files(names, folder): the files to download, where the hub has `names` and `folder` here holds
#       `describing`, those included that the hub lacks,
#   missing(folder): the needed files that a folder here lacks.


@dataclass(frozen=True)
class ModelNeeds:
    """Of a model: configuration, tokenizer, and weights in one format. No examples."""

    describing = ()

    def files(self, names: Collection[str], _folder: Path, /) -> list[str]:
        shards = [name for name in names if _SHARD.fullmatch(name)]
        weights = [SINGLE_FILE] if SINGLE_FILE in names or not shards else shards
        small = [name for name in names if _SMALL.fullmatch(name)]
        return sorted({*small, *weights})

    def missing(self, folder: Path) -> list[str]:
        missing = [] if (folder / "config.json").exists() else ["config.json"]
        if not any((folder / name).exists() for name in _TOKENIZERS):
            missing.append("tokenizer.json")
        if (folder / SINGLE_FILE).exists():
            return missing
        if not (folder / INDEX).exists():
            return [*missing, SINGLE_FILE]
        shards = set(read_json(folder / INDEX).get("weight_map", {}).values())
        return missing + sorted(shard for shard in shards if not (folder / shard).exists())


@dataclass(frozen=True)
class TranscoderNeeds:
    """Of a set of transcoders: `config.yaml`, and the files of its layers that are beside it.

    Files that `config.yaml` lists by address or path are looked for once it has been read.
    """

    n_layers: int | None = None  # of the model; None: as many as there are files for

    describing = (CONFIG,)

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
        there = {path.name for path in folder.iterdir() if path.exists()}
        return [name for name in self.files(there, folder) if name not in there]


@dataclass(frozen=True)
class NamedNeeds:
    """Files that are known by name."""

    names: tuple[str, ...]

    describing = ()

    def files(self, _names: Collection[str], _folder: Path, /) -> list[str]:
        return list(self.names)

    def missing(self, folder: Path) -> list[str]:
        return [name for name in self.names if not (folder / name).exists()]


Needs: TypeAlias = ModelNeeds | TranscoderNeeds | NamedNeeds
