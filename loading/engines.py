"""What runs a model: TransformerLens, or the Hugging Face model itself, wrapped by nnsight."""

from typing import Any

import torch

from loading.entry import Engine


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
