"""The sets of transcoders that circuit-tracer's users have, each with its model, and the demo.

Names, shapes and dtypes are those of the published repositories. Importing this imports no torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from loading.entry import ModelEntry
from loading.footprint import Shapes

_GEMMA_2 = Shapes(
    parameters=2.614e9,
    n_layers=26,
    d_model=2304,
    d_vocab=256_000,
    n_features=16_384,
    model_bytes=4,
    transcoder_bytes=4,
)
_CLT = replace(_GEMMA_2, n_features=98_304, transcoder_bytes=2, cross_layer=True)
_LLAMA_1B = Shapes(
    parameters=1.236e9,
    n_layers=16,
    d_model=2048,
    d_vocab=128_256,
    n_features=131_072,
    skip=True,
)
_LLAMA_8B_TOP_K = Shapes(
    parameters=8.030e9,
    n_layers=32,
    d_model=4096,
    d_vocab=128_256,
    n_features=131_072,
    n_active=128,
)
_GPT_OSS_CLT = Shapes(
    parameters=20.91e9,
    n_layers=24,
    d_model=2880,
    d_vocab=201_088,
    n_features=131_072,
    model_bytes=0.66,  # most of them in four bits
    cross_layer=True,
)


_GEMMA_2_CLT = ModelEntry(
    "google/gemma-2-2b",
    "mntss/clt-gemma-2-2b-2.5M",
    "gemma-2-2b",
    "clt-hp",
    recommended_dtype="bfloat16",
    shapes=_CLT,
)
_GEMMA_SCOPE = replace(
    _GEMMA_2_CLT,
    transcoder_set="mwhanna/gemma-scope-transcoders",
    source_set="gemmascope-transcoder-16k",
    weight_urls=("https://huggingface.co/google/gemma-scope-2b-pt-transcoders",),
    lazy_decoder=False,  # 2 GB
    shapes=_GEMMA_2,
)
_LLAMA = ModelEntry(
    "meta-llama/Llama-3.2-1B",
    "mntss/transcoder-Llama-3.2-1B",
    "llama-3.2-1b",
    recommended_dtype="bfloat16",
    shapes=_LLAMA_1B,
)


def _qwen_3(
    size: str,
    transcoder_set: str,
    parameters: float,
    n_layers: int,
    d_model: int,
    source_set: str | None = None,
    *,
    lazy_encoder: bool = False,
) -> ModelEntry:
    return ModelEntry(
        f"Qwen/Qwen3-{size}B",
        f"mwhanna/{transcoder_set}",
        f"qwen3-{size.lower()}b",
        source_set,
        recommended_dtype="bfloat16",
        lazy_encoder=lazy_encoder,
        shapes=Shapes(parameters, n_layers, d_model, d_vocab=151_936, n_features=163_840),
    )


# Its modules' shapes are those of llamascopium's documents.
_LLAMA_SCOPE_2_SHAPES = Shapes(
    parameters=2.032e9,
    n_layers=28,
    d_model=2048,
    d_vocab=151_936,
    n_features=8 * 2048,
    n_active=64,
    n_qk_heads=16,
    d_qk_head=128,
    n_ctx=2048,
)
_LLAMA_SCOPE_2 = ModelEntry(
    "Qwen/Qwen3-1.7B",
    "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B/8x/k64",
    "qwen3-1.7b",
    recommended_dtype="bfloat16",
    shapes=_LLAMA_SCOPE_2_SHAPES,
    attribution_engine="lm-saes-crm",
)

# Parameters, layers and d_model of Gemma 3. From 4B on it has a vision tower and 64 more tokens.
_GEMMA_3 = {
    "270m": (0.268e9, 18, 640),
    "1b": (1.000e9, 26, 1152),
    "4b": (4.300e9, 34, 2560),
    "12b": (12.187e9, 48, 3840),
    "27b": (27.432e9, 62, 5376),
}


def _gemma_3(
    size: str,
    tuning: str,
    folder: str,
    source_set: str | None = None,
    *,
    n_features: int = 16_384,
    lazy_encoder: bool = False,
    lazy_decoder: bool = True,
) -> ModelEntry:
    parameters, n_layers, d_model = _GEMMA_3[size]
    cross_layer = folder.startswith("clt/")
    repository = f"gemma-scope-2-{size}-{tuning}"
    # The smallest base model is the one without a suffix.
    name = "gemma-3-270m" if (size, tuning) == ("270m", "pt") else f"gemma-3-{size}-{tuning}"
    return ModelEntry(
        f"google/{name}",
        f"mwhanna/{repository}/{folder}",
        f"gemma-3-{size}" + ("-it" if tuning == "it" else ""),
        source_set,
        weight_urls=(
            f"https://huggingface.co/mwhanna/{repository}",
            f"https://huggingface.co/google/{repository}",
        ),
        recommended_dtype="bfloat16",
        lazy_encoder=lazy_encoder,
        lazy_decoder=lazy_decoder,
        shapes=Shapes(
            parameters,
            n_layers,
            d_model,
            d_vocab=262_144 if size in ("270m", "1b") else 262_208,
            n_features=n_features,
            transcoder_bytes=4,
            cross_layer=cross_layer,
            all_decoders_stored=cross_layer,
            skip=folder.endswith("_affine"),
        ),
    )


_DEMO_DIRECTORY = Path(__file__).parent.parent / "demo"
DEMO = ModelEntry(str(_DEMO_DIRECTORY / "model"), str(_DEMO_DIRECTORY / "transcoders"), "demo")

DEMO_CRM = replace(
    DEMO,
    attribution_engine="lm-saes-crm",
    lorsa_set=str(_DEMO_DIRECTORY / "complete"),  # the one expansion and top-k that it has
    short_name="demo-crm",
)

# The first entry of a model holds its default transcoders.
REGISTRY = (
    _GEMMA_SCOPE,
    replace(_GEMMA_SCOPE, transcoder_set="mntss/gemma-scope-transcoders"),
    _GEMMA_2_CLT,
    replace(
        _GEMMA_2_CLT,
        transcoder_set="mntss/clt-gemma-2-2b-426k",
        source_set=None,
        shapes=replace(_CLT, n_features=16_384),
    ),
    _qwen_3("0.6", "qwen3-0.6b-transcoders-lowl0", 0.752e9, 28, 1024),
    _qwen_3("1.7", "qwen3-1.7b-transcoders-lowl0", 2.032e9, 28, 2048),
    _LLAMA_SCOPE_2,
    replace(
        _LLAMA_SCOPE_2,
        transcoder_set="OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B/32x/k64",
        shapes=replace(_LLAMA_SCOPE_2_SHAPES, n_features=32 * 2048),
    ),
    _qwen_3("4", "qwen3-4b-transcoders", 4.022e9, 36, 2560, "transcoder-hp"),
    _qwen_3("8", "qwen3-8b-transcoders", 8.191e9, 36, 4096, lazy_encoder=True),
    _qwen_3("14", "qwen3-14b-transcoders-lowl0", 14.768e9, 40, 5120, lazy_encoder=True),
    _LLAMA,
    replace(
        _LLAMA,
        transcoder_set="mntss/clt-llama-3.2-1b-524k",
        shapes=replace(_LLAMA_1B, n_features=32_768, cross_layer=True, skip=False),
    ),
    ModelEntry(
        "meta-llama/Llama-3.1-8B-Instruct",
        "facebook/crv-8b-instruct-transcoders",
        "llama3.1-8b-it",
        recommended_dtype="bfloat16",
        shapes=_LLAMA_8B_TOP_K,
    ),
    _gemma_3("270m", "pt", "transcoder_all/width_16k_l0_small"),
    _gemma_3(
        "270m",
        "pt",
        "clt/width_262k_l0_medium_affine",
        n_features=262_144 // 18,  # the width is that of all layers together
        lazy_decoder=False,  # 3 GB
    ),
    _gemma_3("270m", "it", "transcoder_all/width_16k_l0_big"),
    _gemma_3("1b", "pt", "transcoder_all/width_16k_l0_small_affine"),
    _gemma_3("1b", "it", "transcoder_all/width_16k_l0_small_affine"),
    _gemma_3("4b", "pt", "transcoder_all/width_16k_l0_small_affine"),
    _gemma_3(
        "4b",
        "it",
        "transcoder_all/width_262k_l0_small_affine",
        "gemmascope-transcoder-262k",
        n_features=262_144,
        lazy_encoder=True,  # 46 GB of it
    ),
    _gemma_3("12b", "pt", "transcoder_all/width_16k_l0_small_affine"),
    _gemma_3("12b", "it", "transcoder_all/width_16k_l0_small_affine"),
    _gemma_3("27b", "it", "transcoder_all/width_16k_l0_small_affine", lazy_encoder=True),
    _gemma_3(
        "27b",
        "pt",
        "transcoder_all/width_262k_l0_small",
        n_features=262_144,
        lazy_encoder=True,
    ),
    ModelEntry(
        "openai/gpt-oss-20b",
        "mntss/clt-131k",
        "gpt-oss-20b",
        recommended_dtype="bfloat16",
        engine="nnsight",  # TransformerLens has no such model
        lazy_encoder=True,
        shapes=_GPT_OSS_CLT,
    ),
)
