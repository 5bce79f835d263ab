"""Memory and time of loading transcoders, left on the disk or read into memory.

    OMP_NUM_THREADS=1 python -m benchmarks.loading

Random weights in float32, per layer and cross-layer, each way of loading in a process of its own.
"Held" are the weights in memory, which is what they take of a GPU's. The process's memory is beyond
what it held before, parts of files that are mapped into it included: while a prompt of 64 tokens is
encoded and decoded, and afterwards.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import torch
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder

from attribution.features import find_active_features
from benchmarks.measure import from_own_process, machine, measure, resident_bytes
from loading import sources
from loading.inspection import inspect
from loading.transcoders import transcoders
from settings import Settings

# (n_layers, d_model, features a layer)
SHAPES = {"transcoder_set": (6, 1024, 8192), "cross_layer_transcoder": (6, 512, 8192)}
# (lazy_encoder, lazy_decoder)
WAYS = ((False, False), (False, True), (True, True))
N_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--load", nargs=3, metavar=("DIRECTORY", "ENCODER", "DECODER"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.load:
        directory, *lazy = args.load
        print(json.dumps(load(Path(directory), *(part == "lazy" for part in lazy))))
        return
    print(machine("cpu"))
    headings = "transcoders | files | encoder | decoder | load | held | peak | afterwards | prompt"
    print(f"| {headings} |")
    print("| --- " * 9 + "|")
    with tempfile.TemporaryDirectory() as temporary:
        for kind in SHAPES:
            directory = write(Path(temporary) / kind, kind)
            size = sum(file.stat().st_size for file in directory.iterdir())
            for way in WAYS:
                words = ["lazy" if lazy else "eager" for lazy in way]
                print(f"| {kind} | {_mb(size)} | {' | '.join(words)} | {row(directory, words)} |")


def row(directory: Path, words: list[str]) -> str:
    result = from_own_process("benchmarks.loading", "--load", str(directory), *words)
    sizes = (_mb(result[name]) for name in ("held", "peak", "afterwards"))
    return f"{result['load_s']:.2f} s | {' | '.join(sizes)} | {result['prompt_s']:.2f} s"


def load(directory: Path, lazy_encoder: bool, lazy_decoder: bool) -> dict[str, float]:
    """Bytes and seconds of loading a set, and of encoding and decoding one prompt with it."""
    files = sources.transcoder_files(str(directory), sources.storage_of(Settings()))
    before, started = resident_bytes(), time.perf_counter()
    loaded = transcoders(
        inspect(files),
        device=torch.device("cpu"),
        dtype=torch.float32,
        lazy_encoder=lazy_encoder,
        lazy_decoder=lazy_decoder,
    )
    seconds = time.perf_counter() - started
    loading = resident_bytes() - before
    n_layers, d_model, _ = SHAPES[files.config.kind]
    inputs = torch.randn(n_layers, N_TOKENS, d_model)
    with torch.inference_mode():
        cost = measure(
            lambda: find_active_features(
                loaded, inputs, slice(0, 1), lambda _layer, vectors, _positions: vectors
            )
        )
    return {
        "load_s": seconds,
        "held": sum(p.numel() * p.element_size() for p in loaded.parameters()),
        "peak": loading + cost.peak_bytes,
        "afterwards": resident_bytes() - before,
        "prompt_s": cost.seconds,
    }


def write(directory: Path, kind: str) -> Path:
    """Random transcoders, with biases that leave about one feature in a hundred active."""
    directory.mkdir()
    torch.manual_seed(0)
    n_layers, d_model, n_features = SHAPES[kind]
    cpu = torch.device("cpu")
    if kind == "cross_layer_transcoder":
        clt = CrossLayerTranscoder(
            n_layers, n_features, d_model, lazy_decoder=False, device=cpu, dtype=torch.float32
        )
        _randomise(clt)
        clt.to_safetensors(str(directory))
    else:
        for layer in range(n_layers):
            transcoder = SingleLayerTranscoder(
                d_model, n_features, torch.relu, layer, device=cpu, dtype=torch.float32
            )
            _randomise(transcoder)
            transcoder.to_safetensors(str(directory / f"layer_{layer}.safetensors"))
    (directory / "config.yaml").write_text(
        f"model_kind: {kind}\n"
        "feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    )
    return directory


def _randomise(transcoder: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in transcoder.named_parameters():
            if "b_enc" in name:
                parameter.fill_(-2.3)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
