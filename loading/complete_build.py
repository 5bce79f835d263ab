"""A complete model from a language model and the modules of a complete set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformer_lens import HookedTransformer, HookedTransformerConfig

from attribution.complete.modules import CompleteModel, Transcoder
from loading import UnsupportedArchitectureError
from loading.complete_modules import Placement, read_lorsa, read_transcoder
from loading.complete_sets import CompleteContents
from loading.hooked_config import hooked_config
from loading.inspection import Contents
from loading.per_layer_transcoders import check_convertible, convert_transcoder
from loading.transformerlens_engine import hooked_model


def complete_model(
    hf_model: Any, name: str, contents: CompleteContents, placement: Placement
) -> CompleteModel:
    """Read a complete set, and a language model that nothing is folded into.

    Args:
        hf_model: as `transformerlens_engine.replacement_model` takes it.
        name: kept as `cfg.model_name`.

    Raises:
        UnsupportedArchitectureError: the engine has no exact way to run the model.
        WeightsMismatchError: the weights aren't those of the architecture.
        WeightsError: a file of the set is damaged, or isn't served.
    """
    device, dtype = placement.device, placement.dtype
    cfg = hooked_config(hf_model.config, model_name=name, device=device, dtype=dtype)
    check_architecture(cfg, name)
    if isinstance(contents.transcoders, Contents):
        check_convertible(contents.transcoders)
    language_model = hooked_model(HookedTransformer, hf_model, name, device, dtype)
    language_model.requires_grad_(False)
    lorsas = tuple(read_lorsa(module, placement) for module in contents.lorsas)
    return CompleteModel(language_model, lorsas, _transcoders(language_model, contents, placement))


def _transcoders(
    language_model: Any, contents: CompleteContents, placement: Placement
) -> Sequence[Transcoder]:
    if not isinstance(contents.transcoders, Contents):
        return tuple(read_transcoder(module, placement) for module in contents.transcoders)
    gains = [block.ln2.w.detach() for block in language_model.blocks]
    return tuple(
        convert_transcoder(layer, contents.transcoders, gain, placement)
        for layer, gain in zip(contents.transcoders.layers, gains, strict=True)
    )


def check_architecture(cfg: HookedTransformerConfig, name: str) -> None:
    """Raise UnsupportedArchitectureError where edges would not be one product each.

    Between two modules there has to be nothing but the residual stream and an RMS norm.
    """
    faults = {
        f"a final logit soft cap of {cfg.output_logits_soft_cap}": cfg.output_logits_soft_cap > 0,
        f"norms of the kind {cfg.normalization_type}": cfg.normalization_type != "RMS",
        f"positions of the kind {cfg.positional_embedding_type}": (
            cfg.positional_embedding_type != "rotary"
        ),
        "attention and MLP in parallel": cfg.parallel_attn_mlp,
    }
    for fault, is_there in faults.items():
        if is_there:
            raise UnsupportedArchitectureError(
                f"{name} has {fault}, which a complete replacement model has no exact edges for: "
                "use a set of circuit-tracer's for it"
            )
