"""Loading 4 layers of Llama-3.2-1B's shape, with a vocabulary of 32,768: time and peak memory.

    python -m benchmarks.load                   # both ways, bfloat16, on the CPU
    python -m benchmarks.load --device cuda

Random weights and transcoders in files, each way in a process of its own with the libraries
imported before. The library's way is that of plain_worker.py: Hugging Face's model, a
TransformerLens model, its `load_and_process_state_dict`. Both have to give the same logits.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig

import loading.build  # noqa: F401 - not to be imported while it is timed
from benchmarks import llama_files
from benchmarks.measure import measure
from loading.hooked_config import hooked_config
from model_loader import load
from settings import Settings

N_LAYERS, D_MODEL, D_TRANSCODER = 4, 2048, 8192
CONFIG = LlamaConfig(
    architectures=["LlamaForCausalLM"],
    vocab_size=32_768,
    hidden_size=D_MODEL,
    intermediate_size=8192,
    num_hidden_layers=N_LAYERS,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=131_072,
    rope_theta=500_000.0,
    tie_word_embeddings=True,
    dtype=torch.bfloat16,
)


def random_weights(shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.02, 0.02)


def random_transcoder() -> dict[str, torch.Tensor]:
    matrices = {name: random_weights((D_TRANSCODER, D_MODEL)) for name in ("W_enc", "W_dec")}
    return {**matrices, "b_enc": random_weights([D_TRANSCODER]), "b_dec": random_weights([D_MODEL])}


def ours(directory: Path, device: str) -> Any:
    settings = Settings(
        _env_file=None,
        device=device,
        model_id=str(directory / "model"),
        transcoder_set=str(directory / "transcoders"),
        model_dtype="bfloat16",
    )
    return load(settings).model


def library(directory: Path, device: str) -> Any:
    from circuit_tracer.replacement_model.replacement_model_transformerlens import (
        TransformerLensReplacementModel,
    )
    from circuit_tracer.utils.hf_utils import load_transcoders
    from transformer_lens.loading_from_pretrained import get_pretrained_state_dict

    where, dtype = torch.device(device), torch.bfloat16
    hf_model = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=dtype)
    cfg = hooked_config(hf_model.config, model_name="random", device=where, dtype=dtype)
    cfg.init_weights = True  # its default
    model = TransformerLensReplacementModel(cfg)
    state = get_pretrained_state_dict(str(directory), cfg, hf_model=hf_model, dtype=dtype)
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False
    )
    config = yaml.safe_load((directory / "transcoders" / "config.yaml").read_text())
    files = [str(directory / f"transcoders/layer_{layer}.safetensors") for layer in range(N_LAYERS)]
    transcoders = load_transcoders({**config, "transcoders": files}, device=where, dtype=dtype)
    model._configure_replacement_model(transcoders)
    return model


WAYS = {"circuit-tracer": library, "ours": ours}


def measure_way(way: str, directory: Path, device: str) -> None:
    """Print a row of the table and, last, the sum of the logits."""
    kept: list[Any] = []
    cost = measure(lambda: kept.append(WAYS[way](directory, device)), device)
    with torch.no_grad():
        total = kept[0](torch.arange(5, device=device)[None]).double().sum().item()
    peak = f"{cost.peak_bytes / 1e9:.1f} GB"
    print(f"| {way} | {cost.seconds:.1f} | {cost.cpu_seconds:.1f} | {peak} |")
    print(total, flush=True)
    os._exit(0)  # the library's model complains when Python ends before it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way is not None:
        measure_way(arguments.way, arguments.directory, arguments.device)
    with tempfile.TemporaryDirectory() as directory:
        llama_files.write(Path(directory), CONFIG, random_weights, random_transcoder)
        print("| way | seconds | of CPU | peak memory |\n| --- | --- | --- | --- |", flush=True)
        totals = []
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.load", "--device", arguments.device]
            command += ["--way", way, "--directory", directory]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            *_, row, total = done.stdout.splitlines()
            print(row, flush=True)
            totals.append(total)
    if len(set(totals)) != 1:
        raise SystemExit(f"the logits differ: {totals}")


if __name__ == "__main__":
    main()
