"""Tiny complete replacement models: 21 cases, which between them have every kind of module.

A case is a variant of the modules (VARIANTS), a prompt and the size of a selection batch. All
share one random Qwen3 model of 5 layers. Every MLP of it has a transcoder and every attention a
Lorsa, in the files that llamascopium writes and reads; nothing here needs llamascopium.

    folders = write_case(tmp_path, CASES["glu-9"])
    folders.model      a Hugging Face folder, with a tokenizer of the words "w3", "w4", ...
    folders.modules    the root of transcoder/2x/k6/layer0_transcoder_2x_k6/{config.json, ...}

`CASES[name]` has the prompt and the parameters of attribution. The graph that llamascopium makes of
a case is a committed fixture: `tests.support.complete_graphs.fixture(name)`.

Weights come from numpy's RandomState, whose numbers never change between versions.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3Config

from tests.support.tiny_models import word_tokenizer

N_LAYERS, D_MODEL, D_VOCAB, N_FEATURES = 5, 32, 50, 64
EXPANSION, TOP_K = "2x", "k6"  # of the folders' names
_SEED = 14

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Variant:
    """How the modules of a case are configured.

    Attributes:
        transcoder: what a transcoder's config.json says besides the values all share.
        lorsa: the same of a Lorsa.
        dtype: of the files. A reader that computes rotary tables, instead of taking those of the
            file, gets others where this is bfloat16.
        stored_qk_heads: the file's heads, where it has fewer than the configuration's; each then
            stands for several in a row.
    """

    transcoder: dict[str, Any] = field(default_factory=dict)
    lorsa: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    stored_qk_heads: int | None = None


@dataclass(frozen=True)
class Case:
    """One attribution. The parameters are those of Neuronpedia's server, with smaller numbers."""

    variant: str
    prompt: str
    batch_size: int
    max_n_logits: int = 6
    desired_logit_prob: float = 0.9
    max_feature_nodes: int = 64
    node_threshold: float = 0.7
    edge_threshold: float = 0.9
    qk_top_fraction: float = 0.5
    qk_topk: int = 5


@dataclass(frozen=True)
class Folders:
    """Where a model's files are, and those of its modules."""

    model: Path
    modules: Path
    expansion: str = EXPANSION
    top_k: str = TOP_K

    def module(self, kind: str, layer: int) -> Path:
        """The folder of one module, of the kind "transcoder" or "lorsa"."""
        name = f"layer{layer}_{kind}_{self.expansion}_{self.top_k}"
        return self.modules / kind / self.expansion / self.top_k / name


_QK_NORM = {"use_post_qk_ln": True, "normalization_type": "RMS"}
_HALVES = {"rotary_adjacent_pairs": False, "rotary_base": 1_000_000}
_NO_NORM = {"sparsity_include_decoder_norm": False}
_JUMP = {"act_fn": "jumprelu"}
_RELU = {"act_fn": "relu"}

VARIANTS = {
    # What the published set is believed to be.
    "topk": Variant(lorsa={**_QK_NORM, **_HALVES}),
    "relu": Variant(
        transcoder={**_RELU, **_NO_NORM},
        lorsa={**_RELU, **_NO_NORM, "n_qk_heads": 2},
    ),
    "jumprelu": Variant(transcoder=_JUMP, lorsa={**_JUMP, **_QK_NORM, "eps": 1e-3}),
    "glu": Variant(
        transcoder={"use_glu_encoder": True},
        lorsa={**_QK_NORM, **_HALVES, "n_qk_heads": 2},
    ),
    "no-rotary": Variant(
        transcoder=_NO_NORM,
        lorsa={"positional_embedding_type": "none", "attn_scale": 1.7, **_JUMP},
    ),
    "bfloat16": Variant(
        transcoder={**_JUMP, **_NO_NORM, "use_glu_encoder": True},
        lorsa={**_JUMP, **_NO_NORM, **_HALVES, "rotary_dim": 4, "attn_scale": 2.0},
        dtype=torch.bfloat16,
    ),
    "few-heads": Variant(
        transcoder={**_RELU, "use_glu_encoder": True, "use_decoder_bias": False},
        lorsa={**_QK_NORM, "use_decoder_bias": False, "d_qk_head": 16},
        stored_qk_heads=2,
    ),
}

_WORDS = (
    "w7 w31 w12 w7 w45 w23",
    "w18 w4 w36 w18 w9 w27 w4 w40 w40",
    "w33 w21 w8 w44 w33 w21 w15 w29 w8 w6 w33 w21",
)
_BATCH_SIZES = (5, 7, 16)

CASES = {
    f"{variant}-{len(prompt.split())}": Case(variant, prompt, batch_size)
    for variant in VARIANTS
    for prompt, batch_size in zip(_WORDS, _BATCH_SIZES, strict=True)
}
# A case of each variant.
ONE_OF_EACH = ["topk-9", "relu-6", "jumprelu-9", "glu-6", "no-rotary-9"]
ONE_OF_EACH += ["bfloat16-6", "few-heads-9"]
# The ids of each case's prompt.
PROMPTS = {name: [int(word[1:]) for word in case.prompt.split()] for name, case in CASES.items()}


def write_case(directory: Path, case: Case) -> Folders:
    """Write a case's model and modules below a directory, which may hold other cases' already."""
    folders = Folders(directory / "model", directory / case.variant)
    if not folders.model.exists():
        _write_model(folders.model)
    if not folders.modules.exists():
        variant = VARIANTS[case.variant]
        # Two variants never share weights, so that no mix-up of modules goes unseen.
        random = np.random.RandomState(_SEED + 1 + list(VARIANTS).index(case.variant))
        for layer in range(N_LAYERS):
            _write_module(folders.module("transcoder", layer), *_transcoder(variant, layer, random))
            _write_module(folders.module("lorsa", layer), *_lorsa(variant, layer, random))
    return folders


def _write_model(folder: Path) -> None:
    """A Qwen3 model with random weights; the norms' gains are random too."""
    config = Qwen3Config(
        vocab_size=D_VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        rope_theta=1_000_000.0,
    )
    model = AutoModelForCausalLM.from_config(config)
    random = np.random.RandomState(_SEED)
    for name, parameter in sorted(model.named_parameters()):
        if name.endswith("norm.weight"):
            parameter.data = _normal(random, *parameter.shape, mean=1.0, std=0.3)
        else:
            std = 0.5 if "embed" in name else 1.2 * parameter.shape[-1] ** -0.5
            parameter.data = _normal(random, *parameter.shape, std=std)
    model.save_pretrained(folder)
    word_tokenizer(D_VOCAB).save_pretrained(folder)


def _transcoder(
    variant: Variant, layer: int, random: np.random.RandomState
) -> tuple[dict[str, Any], Tensors]:
    config = {
        "sae_type": "sae",
        **_shared_config(),
        "hook_point_in": f"blocks.{layer}.ln2.hook_normalized",
        "hook_point_out": f"blocks.{layer}.hook_mlp_out",
        "use_glu_encoder": False,
        **variant.transcoder,
    }
    tensors = {
        "W_E": _normal(random, D_MODEL, N_FEATURES, std=D_MODEL**-0.5),
        "b_E": _normal(random, N_FEATURES, std=0.3),
        "W_D": _decoder(random),
        "b_D": _normal(random, D_MODEL, std=0.3),
    }
    if config["use_glu_encoder"]:
        tensors["W_E_glu"] = _normal(random, D_MODEL, N_FEATURES, std=1.5 * D_MODEL**-0.5)
        tensors["b_E_glu"] = _normal(random, N_FEATURES, std=0.5)
    return config, _as_stored(config, tensors, variant.dtype, random)


def _lorsa(
    variant: Variant, layer: int, random: np.random.RandomState
) -> tuple[dict[str, Any], Tensors]:
    shape = {"n_qk_heads": 8, "d_qk_head": 8}
    shape |= {key: variant.lorsa[key] for key in shape if key in variant.lorsa}
    config = {
        "sae_type": "lorsa",
        **_shared_config(),
        "hook_point_in": f"blocks.{layer}.ln1.hook_normalized",
        "hook_point_out": f"blocks.{layer}.hook_attn_out",
        **shape,
        "positional_embedding_type": "rotary",
        "rotary_dim": shape["d_qk_head"],
        "rotary_base": 10_000,
        "rotary_adjacent_pairs": True,
        "rotary_scale": 1,
        "use_NTK_by_parts_rope": False,
        "NTK_by_parts_factor": 1.0,
        "NTK_by_parts_low_freq_factor": 1.0,
        "NTK_by_parts_high_freq_factor": 1.0,
        "old_context_len": 2048,
        "n_ctx": 32,
        # llamascopium writes the value that it takes when none is given.
        "attn_scale": shape["d_qk_head"] ** 0.5,
        "use_post_qk_ln": False,
        "normalization_type": None,
        "eps": 1e-6,
        **variant.lorsa,
    }
    n_heads, d_qk = variant.stored_qk_heads or shape["n_qk_heads"], shape["d_qk_head"]
    tensors = {
        "W_Q": _normal(random, n_heads, D_MODEL, d_qk, std=1.3 * D_MODEL**-0.5),
        "W_K": _normal(random, n_heads, D_MODEL, d_qk, std=1.3 * D_MODEL**-0.5),
        "b_Q": _normal(random, n_heads, d_qk, std=0.4),
        "b_K": _normal(random, n_heads, d_qk, std=0.4),
        "W_V": _normal(random, N_FEATURES, D_MODEL, std=D_MODEL**-0.5),
        "b_V": _normal(random, N_FEATURES, std=0.3),
        "W_O": _decoder(random),
        "b_D": _normal(random, D_MODEL, std=0.3),
        "mask": torch.ones(config["n_ctx"], config["n_ctx"]).tril().bool(),
        "IGNORE": torch.tensor(-torch.inf),
    }
    if config["use_post_qk_ln"]:
        for name in ("ln_q.w", "ln_k.w"):
            tensors[name] = _normal(random, n_heads, d_qk, mean=1.0, std=0.4)
    if config["positional_embedding_type"] == "rotary":
        tensors["rotary_sin"], tensors["rotary_cos"] = _rotary_tables(config)
    return config, _as_stored(config, tensors, variant.dtype, random)


def _shared_config() -> dict[str, Any]:
    return {
        "d_model": D_MODEL,
        "expansion_factor": N_FEATURES / D_MODEL,
        "use_decoder_bias": True,
        "act_fn": "topk",
        # As the trainer leaves it. The stored weights are to be used as they are.
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "top_k": 6,
        "use_triton_kernel": False,
        "sparsity_threshold_for_triton_spmm_kernel": 0.996,
        "jumprelu_threshold_window": 2.0,
    }


def _rotary_tables(config: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(n_ctx, rotary_dim) each."""
    n_ctx, dim = config["n_ctx"], config["rotary_dim"]
    frequencies = config["rotary_base"] ** (torch.arange(dim // 2) / (dim / 2))
    halves = torch.arange(n_ctx)[:, None] / frequencies
    angles = (
        halves.repeat_interleave(2, dim=1)
        if config["rotary_adjacent_pairs"]
        else torch.cat([halves, halves], dim=1)
    )
    return angles.sin(), angles.cos()


def _as_stored(
    config: dict[str, Any], tensors: Tensors, dtype: torch.dtype, random: np.random.RandomState
) -> Tensors:
    """Add what both kinds of module have, drop what the configuration has not, set the dtype."""
    if config["act_fn"] == "jumprelu":
        thresholds = _normal(random, N_FEATURES, std=0.3) - 0.7
        tensors["activation_function.log_jumprelu_threshold"] = thresholds
    if not config["use_decoder_bias"]:
        del tensors["b_D"]
    for hook in (config["hook_point_in"], config["hook_point_out"]):
        # Memory that llamascopium never set; a reader that scales by it gets absurd numbers.
        tensors[f"dataset_average_activation_norm.{hook}"] = torch.tensor(1e-4)
    return {
        name: (
            tensor if tensor.dtype == torch.bool or name == "IGNORE" else tensor.to(dtype)
        ).contiguous()
        for name, tensor in tensors.items()
    }


def _decoder(random: np.random.RandomState) -> torch.Tensor:
    """Rows of different lengths, so that decoder norms matter."""
    lengths = torch.from_numpy(random.uniform(0.5, 1.5, (N_FEATURES, 1)).astype(np.float32))
    return lengths * _normal(random, N_FEATURES, D_MODEL, std=D_MODEL**-0.5)


def _normal(
    random: np.random.RandomState, *shape: int, mean: float = 0.0, std: float = 1.0
) -> torch.Tensor:
    return torch.from_numpy((mean + std * random.standard_normal(shape)).astype(np.float32))


def _write_module(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    save_file(tensors, folder / "sae_weights.safetensors", {"version": "2.0.0b34"})
