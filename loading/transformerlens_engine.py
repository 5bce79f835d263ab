"""A Hugging Face model and its transcoders, as circuit-tracer's TransformerLens model."""

from pathlib import Path
from typing import Any

import torch
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from transformer_lens.loading_from_pretrained import get_pretrained_state_dict

from loading.hooked_config import hooked_config
from loading.rotary_buffers import rotary_buffers_kept
from loading.weight_layout import lay_out_weights


def replacement_model(
    hf_model: Any, transcoders: Any, name: str, device: torch.device, dtype: torch.dtype
) -> TransformerLensReplacementModel:
    """The replacement model of a Hugging Face model and circuit-tracer transcoders.

    Raises:
        UnsupportedArchitectureError: hooked_config.py has no conversion for the model.
    """
    model = hooked_model(TransformerLensReplacementModel, hf_model, name, device, dtype)
    # What circuit-tracer's own from_pretrained does once the weights are in: its from_config
    # would wrap the MLPs first, under which names the converted weights don't fit.
    with rotary_buffers_kept(model):
        model._configure_replacement_model(transcoders)
    return model


def hooked_model(
    cls: Any, hf_model: Any, name: str, device: torch.device, dtype: torch.dtype
) -> Any:
    """A TransformerLens model of class `cls` with a Hugging Face model's weights, unfolded.

    Raises:
        UnsupportedArchitectureError: hooked_config.py has no conversion for the model.
    """
    cfg = hooked_config(hf_model.config, model_name=name, device=device, dtype=dtype)
    model = cls(cfg)
    # The name only has to exist as a path: the weights come from hf_model.
    any_path = str(Path(__file__).parent)
    state = get_pretrained_state_dict(any_path, cfg, hf_model=hf_model, dtype=dtype)
    model.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    lay_out_weights(model)
    return model.eval()
