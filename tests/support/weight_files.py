"""Files of a model and of transcoders by the names that matter, and the caches that hold them.

What is found, chosen and downloaded goes by names; no test that uses these reads the weights.
"""

import json
from pathlib import Path
from typing import Any

from loading import sources
from settings import Settings

NAME, SET = "google/gemma-2-2b", "mwhanna/transcoders"
MODEL = {
    "config.json": b'{"num_hidden_layers": 2, "torch_dtype": "float32"}',
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": b"first" * 100,
    "model-00002-of-00002.safetensors": b"second" * 100,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors",
                        "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
}  # fmt: skip
OTHER_FORMATS = {
    "pytorch_model.bin": b"pickle",
    "original/consolidated.00.pth": b"pickle",
    "gemma-2-2b.gguf": b"gguf",
    "README.md": b"# Gemma",
}
CONFIG = (
    "model_kind: {}\nfeature_input_hook: ln2.hook_normalized\nfeature_output_hook: hook_mlp_out\n"
)
PER_LAYER = {
    "config.yaml": CONFIG.format("transcoder_set").encode(),
    "layer_0.safetensors": b"layer 0",
    "layer_1.safetensors": b"layer 1",
}
CROSS_LAYER = {
    "config.yaml": CONFIG.format("cross_layer_transcoder").encode(),
    **{
        f"W_{part}_{i}.safetensors": f"{part}{i}".encode()
        for part in ("enc", "dec")
        for i in (0, 1)
    },
}
FEATURE_PAGES = {"features/layer_0.bin": b"pages", "features/index.json.gz": b"index"}


def in_folder(files, folder):
    return {f"{folder}/{name}": content for name, content in files.items()}


def listing(*addresses):
    lines = [f"  - {address!r}\n" for address in addresses]
    return (CONFIG.format("transcoder_set") + "transcoders:\n" + "".join(lines)).encode()


def empty_caches(directory: Path) -> dict[str, Any]:
    """Settings under which the caches are directories that don't exist yet."""
    return {
        "image_weights": str(directory / "image"),
        "runpod_model_cache": str(directory / "runpod" / "hub"),
        "hf_home": str(directory / "home"),
        "hf_token_path": str(directory / "no-token"),
    }


def storage(caches: dict[str, Any]) -> sources.Storage:
    return sources.storage_of(Settings(_env_file=None, **caches))


def cache_paths(caches: dict[str, Any]) -> list[Path]:
    """The image's, Runpod's and HF_HOME's."""
    return [cache.path for cache in storage(caches).caches]
