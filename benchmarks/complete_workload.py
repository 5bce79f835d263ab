"""Random complete replacement models to measure, on the disk as llamascopium writes them.

Random weights are enough: cost depends on shapes and on how many features are active, which a TopK
activation sets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from tests.support.complete_cases import Folders
from tests.support.tiny_models import word_tokenizer

_SEED = 14


class CompleteWorkload(NamedTuple):
    """A model with its modules, a prompt and what is asked of its graph."""

    n_tokens: int
    top_k: int  # active features of a module at each position
    max_feature_nodes: int
    traced: float = 0  # of the graph's Lorsa features, 0 for a graph without tracing
    qk_topk: int = 5
    batch_size: int = 16
    n_layers: int = 8
    d_model: int = 512
    d_sae: int = 4096
    n_qk: int = 16
    d_qk: int = 32
    d_vocab: int = 1000
    n_ctx: int = 512


WORKLOADS = {
    "C32": CompleteWorkload(32, 32, 1000),
    "C32-traced": CompleteWorkload(32, 32, 1000, traced=0.5),
    # What Neuronpedia's webapp asks of qwen3-1.7b.
    "C10-traced": CompleteWorkload(10, 64, 3000, traced=0.5),
    # As many layers, tokens and features as that has there, in narrow layers.
    "K10": CompleteWorkload(
        10, 64, 3000, traced=0.5, n_layers=28, d_model=16, d_sae=256, d_qk=4, n_ctx=16
    ),
    # A few layers of it, and more heads.
    "K6": CompleteWorkload(
        6, 12, 200, traced=0.5, n_layers=4, d_model=64, d_sae=256, n_qk=16, d_qk=8, n_ctx=16
    ),
    # A long prompt.
    "K256": CompleteWorkload(
        256, 64, 3000, traced=0.5, n_layers=4, d_model=32, d_sae=256, d_qk=4, n_ctx=256
    ),
}


def prompt(w: CompleteWorkload) -> str:
    """Random words, each a token."""
    ids = torch.randint(3, w.d_vocab, (w.n_tokens,), generator=_random(1))
    return " ".join(f"w{i}" for i in ids.tolist())


def tokens(w: CompleteWorkload) -> Tensor:
    """The prompt's ids (n_tokens,)."""
    return torch.tensor([int(word[1:]) for word in prompt(w).split()])


def write(directory: Path, w: CompleteWorkload) -> Folders:
    """Write the model and its modules below a directory."""
    folders = Folders(directory / "model", directory / "modules", f"{w.d_sae // w.d_model}x", "k")
    _write_model(folders.model, w)
    random = _random(2)
    for layer in range(w.n_layers):
        for kind, of_kind in (("transcoder", _transcoder), ("lorsa", _lorsa)):
            folder = folders.module(kind, layer)
            config, tensors = of_kind(w, layer, random)
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(config, indent=4))
            save_file(tensors, folder / "sae_weights.safetensors")
    return folders


def _write_model(folder: Path, w: CompleteWorkload) -> None:
    config = Qwen3Config(
        vocab_size=w.d_vocab,
        hidden_size=w.d_model,
        intermediate_size=2 * w.d_model,
        num_hidden_layers=w.n_layers,
        num_attention_heads=w.n_qk,
        num_key_value_heads=w.n_qk // 2,
        head_dim=w.d_qk,
        max_position_embeddings=w.n_ctx,
        tie_word_embeddings=True,
    )
    model, random = AutoModelForCausalLM.from_config(config), _random(3)
    for name, parameter in sorted(model.named_parameters()):
        if not name.endswith("norm.weight"):
            parameter.data = _normal(random, *parameter.shape)
    model.save_pretrained(folder)
    word_tokenizer(w.d_vocab).save_pretrained(folder)


def _transcoder(
    w: CompleteWorkload, layer: int, random: torch.Generator
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    hooks = {
        "hook_point_in": f"blocks.{layer}.ln2.hook_normalized",
        "hook_point_out": f"blocks.{layer}.hook_mlp_out",
    }
    tensors = {
        "W_E": _normal(random, w.d_sae, w.d_model).T.contiguous(),
        "b_E": 0.1 * _normal(random, w.d_sae),
        "W_D": _normal(random, w.d_sae, w.d_model),
        "b_D": _normal(random, w.d_model),
    }
    return {"sae_type": "sae", **_shared(w), **hooks, "use_glu_encoder": False}, tensors


def _lorsa(
    w: CompleteWorkload, layer: int, random: torch.Generator
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = {
        "sae_type": "lorsa",
        **_shared(w),
        "hook_point_in": f"blocks.{layer}.ln1.hook_normalized",
        "hook_point_out": f"blocks.{layer}.hook_attn_out",
        "n_qk_heads": w.n_qk,
        "d_qk_head": w.d_qk,
        "positional_embedding_type": "rotary",
        "rotary_dim": w.d_qk,
        "rotary_base": 1_000_000,
        "rotary_adjacent_pairs": False,
        "rotary_scale": 1,
        "use_NTK_by_parts_rope": False,
        "n_ctx": w.n_ctx,
        "attn_scale": w.d_qk**0.5,
        "use_post_qk_ln": True,
        "normalization_type": "RMS",
        "eps": 1e-6,
    }
    per_head = {name: _normal(random, w.n_qk, w.d_model, w.d_qk) for name in ("W_Q", "W_K")}
    gains = {name: torch.ones(w.n_qk, w.d_qk) for name in ("ln_q.w", "ln_k.w")}
    angles = torch.arange(w.n_ctx)[:, None] * 1e6 ** (-torch.arange(w.d_qk // 2) / (w.d_qk / 2))
    angles = torch.cat([angles, angles], 1)
    tensors = {
        **per_head,
        **gains,
        "b_Q": _normal(random, w.n_qk, w.d_qk),
        "b_K": _normal(random, w.n_qk, w.d_qk),
        "W_V": _normal(random, w.d_sae, w.d_model),
        "b_V": 0.1 * _normal(random, w.d_sae),
        "W_O": _normal(random, w.d_sae, w.d_model),
        "b_D": _normal(random, w.d_model),
        "rotary_cos": angles.cos(),
        "rotary_sin": angles.sin(),
        # llamascopium loads a file only whole.
        "mask": torch.ones(w.n_ctx, w.n_ctx).tril().bool(),
        "IGNORE": torch.tensor(-torch.inf),
    }
    return config, tensors


def _shared(w: CompleteWorkload) -> dict[str, Any]:
    return {
        "d_model": w.d_model,
        "expansion_factor": w.d_sae / w.d_model,
        "use_decoder_bias": True,
        "act_fn": "topk",
        "top_k": w.top_k,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
    }


def _normal(random: torch.Generator, *shape: int) -> Tensor:
    """Rows of length one or so, and of vectors as large in all."""
    return torch.randn(*shape, generator=random) * shape[-1] ** -0.5


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(_SEED + seed)
