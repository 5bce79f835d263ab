"""Tiny complete sets in the files of llamascopium's layout: random modules, any configuration."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support.model_cache import files_of

D_MODEL, EXPANSION, TOP_K = 16, "2x", "k4"
N_FEATURES, N_QK, D_QK, N_CTX = 32, 4, 8, 24

Tensors = dict[str, torch.Tensor]

_COMMON: dict[str, Any] = {
    "d_model": D_MODEL,
    "expansion_factor": 2,
    "act_fn": "topk",
    "top_k": 4,
    "use_decoder_bias": True,
    "sparsity_include_decoder_norm": True,
    "norm_activation": "dataset-wise",
    "jumprelu_threshold_window": 2.0,
    "use_triton_kernel": False,
    "sparsity_threshold_for_triton_spmm_kernel": 0.996,
}


def transcoder_config(layer: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "sae_type": "sae",
        **_COMMON,
        "hook_point_in": f"blocks.{layer}.ln2.hook_normalized",
        "hook_point_out": f"blocks.{layer}.hook_mlp_out",
        "use_glu_encoder": False,
        **changes,
    }


def lorsa_config(layer: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "sae_type": "lorsa",
        **_COMMON,
        "hook_point_in": f"blocks.{layer}.ln1.hook_normalized",
        "hook_point_out": f"blocks.{layer}.hook_attn_out",
        "n_qk_heads": N_QK,
        "d_qk_head": D_QK,
        "positional_embedding_type": "rotary",
        "rotary_dim": D_QK,
        "rotary_base": 1_000_000,
        "rotary_adjacent_pairs": False,
        "rotary_scale": 1,
        "use_NTK_by_parts_rope": False,
        "NTK_by_parts_factor": 1.0,
        "NTK_by_parts_low_freq_factor": 1.0,
        "NTK_by_parts_high_freq_factor": 1.0,
        "old_context_len": 2048,
        "n_ctx": N_CTX,
        "attn_scale": D_QK**0.5,
        "use_post_qk_ln": True,
        "normalization_type": "RMS",
        "eps": 1e-6,
        **changes,
    }


def tensors_for(
    config: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    stored_heads: int | None = None,
    tables: bool = True,
    seed: int = 0,
) -> Tensors:
    """Random tensors of a module, in what llamascopium saves of it.

    Args:
        stored_heads: QK heads of the file, where it has fewer than the configuration's.
        tables: whether the file has rotary tables. They are random ones, so that a reader that
            computes them gets others.
    """
    random = torch.Generator().manual_seed(seed)
    width = config["d_model"]
    n_features = int(width * config["expansion_factor"])

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    tensors: Tensors = {}
    if config["sae_type"] == "sae":
        tensors |= {"W_E": numbers(width, n_features), "b_E": numbers(n_features)}
        tensors["W_D"] = numbers(n_features, width)
        if config.get("use_glu_encoder"):
            tensors |= {"W_E_glu": numbers(width, n_features), "b_E_glu": numbers(n_features)}
    else:
        heads, of_head = stored_heads or config["n_qk_heads"], config["d_qk_head"]
        for side in "QK":
            tensors[f"W_{side}"] = numbers(heads, width, of_head)
            tensors[f"b_{side}"] = numbers(heads, of_head)
            if config.get("use_post_qk_ln"):
                tensors[f"ln_{side.lower()}.w"] = numbers(heads, of_head)
        tensors |= {"W_V": numbers(n_features, width), "W_O": numbers(n_features, width)}
        tensors["b_V"] = numbers(n_features)
        n_ctx = config["n_ctx"]
        tensors["mask"] = torch.ones(n_ctx, n_ctx).tril().bool()
        tensors["IGNORE"] = torch.tensor(-torch.inf)
        if tables and config.get("positional_embedding_type") != "none":
            for part in ("cos", "sin"):
                tensors[f"rotary_{part}"] = numbers(n_ctx, config["rotary_dim"])
    if config.get("use_decoder_bias", True):
        tensors["b_D"] = numbers(width)
    if config.get("act_fn") == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = numbers(n_features)
    for key in ("hook_point_in", "hook_point_out"):
        # Never set, as in most published files: any number may stand there.
        tensors[f"dataset_average_activation_norm.{config[key]}"] = torch.tensor(float("nan"))
    return tensors


def write_module(
    folder: Path,
    config: dict[str, Any],
    tensors: Tensors | None = None,
    *,
    weights: str = "sae_weights.safetensors",
) -> Path:
    """Write a module's two files; without tensors, random ones."""
    file = folder / weights
    file.parent.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    save_file(tensors_for(config) if tensors is None else tensors, file, {"version": "2.0.0b34"})
    return folder


def module_folder(root: Path, kind: str, layer: int, part: str = f"{EXPANSION}/{TOP_K}") -> Path:
    return root / kind / part / f"layer{layer}_{kind}_{part.replace('/', '_')}"


def write_set(
    root: Path,
    n_layers: int = 2,
    *,
    kinds: tuple[str, ...] = ("transcoder", "lorsa"),
    part: str = f"{EXPANSION}/{TOP_K}",
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Write a set's tree.

    Args:
        part: the folders that name the set in its tree. What is in them is the same for all.
        changes: to the configurations of all modules; those that only one kind has are its alone.

    Returns:
        The path that names the set: `root/2x/k4`, which is no folder.
    """
    makers = {"transcoder": transcoder_config, "lorsa": lorsa_config}
    for layer in range(n_layers):
        for kind in kinds:
            maker = makers[kind]
            known = maker()
            config = maker(layer, **{key: v for key, v in changes.items() if key in known})
            seed = 10 * layer + len(kind)
            tensors = tensors_for(config, dtype=dtype, seed=seed)
            write_module(module_folder(root, kind, layer, part), config, tensors)
    return root / part


def complete(n_layers: int, d_model: int) -> Callable[[str], dict[str, dict[str, bytes]]]:
    """The repository of a random set for a model, by the set's name: `owner/name/8x/k64`."""

    def repositories(name: str) -> dict[str, dict[str, bytes]]:
        *repository, expansion, top_k = name.split("/")
        with tempfile.TemporaryDirectory() as directory:
            part = f"{expansion}/{top_k}"
            write_set(Path(directory), n_layers, part=part, d_model=d_model, n_ctx=128)
            return {"/".join(repository): files_of(Path(directory))}

    return repositories
