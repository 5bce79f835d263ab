"""What runs a model: TransformerLens, or the Hugging Face model itself, wrapped by nnsight."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from loading.checkpoint import open_checkpoint
from loading.entry import Engine


@contextmanager
def opened(
    engine: Engine, directory: Path, hf_config: Any, *, device: torch.device, dtype: torch.dtype
) -> Iterator[Any]:
    """A model's files as `replacement_model` takes them: TransformerLens needs the weights alone.

    Args:
        directory: configuration and safetensors.
        hf_config: its `transformers` configuration.

    Raises:
        UnsupportedArchitectureError: the configuration has a value that the engine doesn't serve.
        WeightsMismatchError: the weights aren't those of the configuration's model.
    """
    if engine == "nnsight":
        from loading.hugging_face_model import read_model

        yield read_model(directory, hf_config, dtype, device)
        return
    yield open_checkpoint(directory, hf_config, device=device, dtype=dtype)


def replacement_model(
    engine: Engine,
    hf_model: Any,
    transcoders: Any,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """circuit-tracer's replacement model of a Hugging Face model and its transcoders.

    Args:
        hf_model: a Hugging Face model; for TransformerLens its checkpoint does as well.
        name: kept as `cfg.model_name`; circuit-tracer goes by it for Gemma 3's prefix.

    Raises:
        UnsupportedArchitectureError: the engine doesn't run this model with these transcoders.
    """
    # Either library takes seconds to import, and a worker has one engine.
    if engine == "nnsight":
        from loading import nnsight_engine

        return nnsight_engine.replacement_model(hf_model, transcoders, name, device, dtype)
    from loading import transformerlens_engine

    return transformerlens_engine.replacement_model(hf_model, transcoders, name, device, dtype)
