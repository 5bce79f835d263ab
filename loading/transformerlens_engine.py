"""A Hugging Face model and its transcoders, as circuit-tracer's TransformerLens model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.components import PosEmbed, Unembed
from transformer_lens.components.abstract_attention import AbstractAttention
from transformer_lens.components.mlps.gated_mlp import GatedMLP
from transformer_lens.loading_from_pretrained import get_pretrained_state_dict

from loading import UnsupportedArchitectureError
from loading.checkpoint import Part, check_weights, open_checkpoint, unread
from loading.hooked_config import hooked_config

# Where transcoders usually read and write, for messages.
_USUAL_HOOKS = {
    "feature_input_hook": "mlp.hook_in, ln2.hook_normalized, hook_resid_mid",
    "feature_output_hook": "mlp.hook_out, hook_mlp_out",
}


def load(
    directory: Path,
    config: Any,
    transcoders: Any,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
) -> TransformerLensReplacementModel:
    """The replacement model of a model's directory; as `replacement_model`."""
    checkpoint = open_checkpoint(directory, config, device=device, dtype=dtype)
    return replacement_model(checkpoint, transcoders, name, device, dtype)


class _ReplacementModel(TransformerLensReplacementModel):
    def _deduplicate_attention_buffers(self) -> None:
        """Leave masks and rotary embeddings: `_build` has them shared by the layers of a kind.

        circuit-tracer's method gives all layers the rotary embeddings of the last one, silently
        wrong for Gemma 3, whose local and global layers have different rope bases.
        """


def replacement_model(
    hf_model: Any, transcoders: Any, name: str, device: torch.device, dtype: torch.dtype
) -> TransformerLensReplacementModel:
    """The replacement model of a Hugging Face model's weights and circuit-tracer transcoders.

    Args:
        hf_model: a Hugging Face model, or its checkpoint (checkpoint.py); weights on `device` and
            of `dtype` are taken as they are, not copied.
        name: kept as `cfg.model_name`; circuit-tracer goes by it for Gemma 3's prefix.

    Raises:
        UnsupportedArchitectureError: hooked_config.py has no conversion for the model, or it lacks
            the hook where the transcoders read or write.
        WeightsMismatchError: the weights aren't those of the architecture.
    """
    model = hooked_model(_ReplacementModel, hf_model, name, device, dtype)
    _check_hooks(model, transcoders, name)
    # What circuit-tracer's own from_pretrained does with a model that has its weights: from_config
    # would wrap the MLPs first, and the converted weights' names don't fit wrapped ones.
    model._configure_replacement_model(transcoders)
    return model


def check_hooks(config: Any, transcoders: Any, name: str) -> None:
    """Raise UnsupportedArchitectureError unless the hooks where features read and write exist.

    Args:
        config: the model's `transformers` configuration.
        transcoders: these, or the configuration of their set.
    """
    cfg = hooked_config(config, model_name=name)
    cfg.n_layers = cfg.d_vocab = cfg.d_vocab_out = 1  # neither changes which hooks there are
    _check_hooks(_build(HookedTransformer, cfg), transcoders, name)


def _check_hooks(model: Any, transcoders: Any, name: str) -> None:
    for key, usual in _USUAL_HOOKS.items():
        hook = getattr(transcoders, key)
        # circuit-tracer wraps the MLP, and finds only its own two hooks there.
        if hook.startswith("mlp."):
            exists = hook in ("mlp.hook_in", "mlp.hook_out")
        else:
            exists = f"blocks.0.{hook}" in model.hook_dict
        if not exists:
            raise UnsupportedArchitectureError(
                f"the transcoders have {key}: {hook}, which {name} doesn't have on "
                f"TransformerLens; correct their config.yaml (usual are {usual})"
            )


def hooked_model(
    cls: Any, hf_model: Any, name: str, device: torch.device, dtype: torch.dtype
) -> Any:
    """A TransformerLens model of class `cls` with a Hugging Face model's weights, unfolded.

    Raises:
        UnsupportedArchitectureError: hooked_config.py has no conversion for the model.
        WeightsMismatchError: the weights aren't those of the architecture.
    """
    cfg = hooked_config(hf_model.config, model_name=name, device=device, dtype=dtype)
    model = _build(cls, cfg)
    # The weights come from hf_model; the name only has to be a path that exists.
    any_path = str(Path(__file__).parent)
    state = get_pretrained_state_dict(any_path, cfg, hf_model=hf_model, dtype=dtype)
    left: list[str] = []
    if isinstance(hf_model, Part):
        names = sorted(hf_model.stored - hf_model.read)
        left = unread(names, tied=hf_model.config.tie_word_embeddings)
    _set_parameters(model, state, left, device)
    lay_out_weights(model)
    # As a string: of a torch.device TransformerLens keeps the type alone, "cuda" for "cuda:1".
    return model.to(str(device), print_details=False).eval()


def _build(cls: Any, cfg: HookedTransformerConfig) -> Any:
    """A model without weights, whose layers share masks and rotary embeddings by kind.

    TransformerLens makes masks of n_ctx x n_ctx for each layer, which takes longer than to read
    the layer's weights. So it is built for one position, and the rest is made once a kind.
    """
    n_ctx, cfg.n_ctx = cfg.n_ctx, 1
    with _matrices_without_memory():
        model = cls(cfg, move_to_device=False)
        cfg.n_ctx = n_ctx
        if hasattr(model, "pos_embed"):
            model.pos_embed = PosEmbed(cfg)
        buffers: dict[str, dict[str, Tensor]] = {}
        for block in model.blocks:
            kind = block.attn.attn_type
            if kind not in buffers:
                attention = type(block.attn)(cfg, kind, block.attn.layer_id)
                made = attention.named_buffers(recurse=False)
                # On the device here: moved with the model later, each layer would get a copy.
                buffers[kind] = {name: buffer.to(cfg.device) for name, buffer in made}
            for name, buffer in buffers[kind].items():
                setattr(block.attn, name, buffer)
    model.setup()
    return model


@contextmanager
def _matrices_without_memory() -> Iterator[None]:
    """Modules built meanwhile have matrices on the meta device, and buffers that are real.

    With the whole model on the meta device `torch.tril` would import torch._dynamo, in 0.8 s.
    """

    def without_memory(
        _module: nn.Module, _name: str, parameter: nn.Parameter
    ) -> nn.Parameter | None:
        if parameter.ndim < 2:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(without_memory)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _set_parameters(
    model: nn.Module, state: dict[str, Tensor], left: list[str], device: torch.device
) -> None:
    """Make the tensors of `state` the model's parameters, each in its parameter's dtype.

    Raises:
        WeightsMismatchError: they aren't those of the model, or `left` names some that it lacks.
    """
    parameters = dict(model.named_parameters())
    bias = "unembed.b_U"  # the one that converters leave out, where a model has none
    state.setdefault(bias, torch.zeros(parameters[bias].shape))
    check_weights(
        missing=[name for name in parameters if name not in state],
        misshapen=[
            n for n, t in state.items() if n in parameters and t.shape != parameters[n].shape
        ],
        unread=left,
    )
    for name in list(state):
        state[name] = state[name].to(device, parameters[name].dtype)
    model.load_state_dict(state, strict=False, assign=True)


def lay_out_weights(model: Any) -> None:
    """Put a HookedTransformer's weights into the memory order in which it multiplies with them.

    TransformerLens 3 transposes the weights of gated MLPs, attention and unembedding into fresh
    memory in every forward pass, which for a few tokens takes longer than the pass. A parameter
    whose memory has the transposed order already isn't copied: the same parameters, the same
    kernels, the same bits. Shapes and values stay.

    Takes memory for one more copy of the largest weight meanwhile.
    """
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(module, GatedMLP | Unembed) and weight.ndim == 2:
                weight.data = _in_order(weight.detach(), 1, 0)
            elif isinstance(module, AbstractAttention) and name == "W_O":
                # (n_heads, d_head, d_model), used as (d_model, n_heads * d_head)
                weight.data = _in_order(weight.detach(), 2, 0, 1)
            elif isinstance(module, AbstractAttention) and weight.ndim == 3:
                # W_Q, W_K, W_V, (n_heads, d_model, d_head), used as (n_heads * d_head, d_model)
                weight.data = _in_order(weight.detach(), 0, 2, 1)


def _in_order(weight: Tensor, *dimensions: int) -> Tensor:
    """The same tensor, contiguous in memory when its dimensions are permuted so."""
    back = [dimensions.index(dimension) for dimension in range(weight.ndim)]
    return weight.permute(dimensions).contiguous().permute(back)
