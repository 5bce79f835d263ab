"""Sets of transcoders found, converted and read, for tests of that."""

from pathlib import Path

import torch

from loading import conversion, sources
from loading.transcoders import transcoders
from tests.tiny_families import N_LAYERS
from tests.weight_files import places

CPU = torch.device("cpu")
EAGER = {"lazy_encoder": False, "lazy_decoder": False}
LAZY = {"lazy_encoder": True, "lazy_decoder": True}


def located(directory, caches) -> sources.TranscoderFiles:
    return sources.transcoder_files(str(directory), places(caches), N_LAYERS)


def convert(directory, caches) -> sources.TranscoderFiles:
    return conversion.convert(located(directory, caches), places(caches))


def read(files, dtype=torch.float32, **lazy):
    return transcoders(files, device=CPU, dtype=dtype, **{**EAGER, **lazy})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
