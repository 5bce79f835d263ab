"""The workloads on which attribution's speed and exactness are judged.

Each is a random Gemma-2-shaped model with JumpReLU transcoders, or one of another family, and a
random prompt. Random weights are enough: cost depends on shapes and on how many features are
active, and exactness on neither.
"""

from typing import Any, NamedTuple

import torch
from circuit_tracer import ReplacementModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

from benchmarks.families import FAMILIES, Family, transcoders


class Workload(NamedTuple):
    n_layers: int
    d_model: int
    d_transcoder: int
    threshold: float  # of the JumpReLU: the lower, the more features are active
    n_tokens: int
    max_feature_nodes: int
    d_head: int = 64
    n_heads: int | None = None  # d_model / 64
    d_mlp: int | None = None  # 2 d_model
    d_vocab: int = 2000
    batch_size: int = 48


WORKLOADS = {
    "R0": Workload(4, 128, 1024, 2.0, 16, 200),  # a quick look
    "R1": Workload(8, 256, 4096, 1.5, 32, 1000),  # 69,000 active features
    "R2": Workload(8, 256, 4096, 2.3, 128, 2000),  # a long prompt
    "R2-512": Workload(8, 256, 4096, 2.3, 512, 2000),  # for its memory
    # Gemma-2-2B's shapes, for a GPU: about 60 active features a token and layer.
    "G64": Workload(26, 2304, 16384, 2.7, 64, 5000, 256, 8, 9216, 256_000, 256),
    "G512": Workload(26, 2304, 16384, 2.7, 512, 5000, 256, 8, 9216, 256_000, 256),
    # As many layers, tokens and features as G64 in narrow layers: what is launched, on a CPU.
    "K64": Workload(26, 64, 1024, 1.6, 64, 5000, 16),
    # A few layers of it.
    "K24": Workload(4, 64, 512, 1.8, 24, 300, 32, 4, 96, 300, 32),
    # The same with the least arithmetic: 14,000 active features in layers that are narrower yet.
    "K64-": Workload(26, 16, 256, 1.8, 64, 5000, 8, 2, 16, 500),
}


def build(
    name: str,
    *,
    family: str = "reference",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Any, torch.Tensor, dict[str, Any]]:
    """Return a replacement model, token ids (n_tokens,) and settings for `attribute`."""
    w, kind = WORKLOADS[name], FAMILIES[family]
    torch.manual_seed(seed)
    model = ReplacementModel.from_config(
        _config(w, kind, device, dtype),
        transcoders(kind, w.n_layers, w.d_model, w.d_transcoder, w.threshold, device, dtype),
    )
    model.tokenizer = _tokenizer(w.d_vocab)
    torch.manual_seed(seed + 1)
    words = torch.randint(2, w.d_vocab, (w.n_tokens - 1,))
    tokens = torch.cat([torch.zeros(1, dtype=torch.long), words])
    settings = {"batch_size": w.batch_size, "max_feature_nodes": w.max_feature_nodes}
    return model, tokens, {"max_n_logits": 10, "update_interval": 4, **settings}


def _config(
    w: Workload, family: Family, device: str, dtype: torch.dtype
) -> HookedTransformerConfig:
    n_heads = w.n_heads or w.d_model // 64
    options = dict(family.config)
    if options.get("positional_embedding_type") == "rotary":
        options["rotary_dim"] = w.d_head
    if options.get("use_local_attn"):
        options["attn_types"] = ["local", "global"] * (w.n_layers // 2 + 1)
    return HookedTransformerConfig(
        n_layers=w.n_layers,
        d_model=w.d_model,
        n_ctx=512,
        d_head=w.d_head,
        n_heads=n_heads,
        n_key_value_heads=max(1, n_heads // 2) if family.grouped_heads else None,
        d_mlp=w.d_mlp or 2 * w.d_model,
        d_vocab=w.d_vocab,
        model_name="synthetic",
        device=device,
        dtype=dtype,
        init_weights=True,
        **options,
    )


def _tokenizer(d_vocab: int) -> PreTrainedTokenizerFast:
    vocabulary = {"<bos>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, d_vocab)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", unk_token="<eos>"
    )
