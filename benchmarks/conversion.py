"""Transcoders in Google's layouts: what converting them costs, and reading them before and after.

    OMP_NUM_THREADS=1 python -m benchmarks.conversion

Random weights in float32, in files that are in the page cache, each measurement in a process of its
own. Peak memory is beyond what the process held before, files mapped into it included.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.measure import Cost, from_own_process, machine, measure
from loading import converted, sources
from loading.inspection import inspect
from loading.transcoders import transcoders
from settings import Settings

N_LAYERS, D_MODEL, N_FEATURES = 4, 2304, 16_384
LAYOUTS = ("npz", "safetensors")
WORK = ("eager, original", "convert", "eager, converted", "lazy, converted")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", nargs=3, metavar=("WORK", "DIRECTORY", "DTYPE"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.work:
        work, directory, dtype = arguments.work
        print(json.dumps(measured(work, Path(directory), getattr(torch, dtype))))
        return
    print(machine("cpu"))
    print("| files | dtype | | seconds | of CPU | peak memory |")
    print("| --- " * 6 + "|")
    with tempfile.TemporaryDirectory() as temporary:
        for layout in LAYOUTS:
            directory = write(Path(temporary) / layout, layout)
            size = sum(file.stat().st_size for file in directory.iterdir())
            for dtype in ("float32", "bfloat16"):
                for work in WORK:
                    if work != "convert" or dtype == "float32":
                        print(f"| {layout}, {size / 1e6:.0f} MB | {row(work, directory, dtype)}")


def row(work: str, directory: Path, dtype: str) -> str:
    arguments = ("--work", work, str(directory), dtype)
    seconds, cpu_seconds, peak = from_own_process("benchmarks.conversion", *arguments)
    shown = "any" if work == "convert" else dtype
    return f"{shown} | {work} | {seconds:.2f} | {cpu_seconds:.2f} | {peak / 1e6:.0f} MB |"


def measured(work: str, directory: Path, dtype: torch.dtype) -> Cost:
    """The cost of some work on a set."""
    settings = Settings(_env_file=None, hf_home=str(directory.parent / f"{directory.name}-home"))
    storage = sources.storage_of(settings)
    files = sources.transcoder_files(str(directory), storage)
    if "converted" in work:
        found = converted.find(files, storage)
        assert found is not None
        files = found
    lazy = work.startswith("lazy")

    def read() -> object:
        return transcoders(
            inspect(files),
            device=torch.device("cpu"),
            dtype=dtype,
            lazy_encoder=lazy,
            lazy_decoder=lazy,
        )

    def convert() -> object:
        return converted.convert(inspect(files), storage)

    return measure(convert if work == "convert" else read)


def write(directory: Path, layout: str) -> Path:
    directory.mkdir()
    generator = torch.Generator().manual_seed(0)
    names = [f"layer_{layer}.{layout}" for layer in range(N_LAYERS)]
    for name in names:
        tensors = {
            "W_enc": torch.randn(D_MODEL, N_FEATURES, generator=generator),
            "W_dec": torch.randn(N_FEATURES, D_MODEL, generator=generator),
            "b_enc": torch.zeros(N_FEATURES),
            "b_dec": torch.zeros(D_MODEL),
            "threshold": torch.ones(N_FEATURES),
        }
        if layout == "npz":
            arrays: dict[str, Any] = {key: tensor.numpy() for key, tensor in tensors.items()}
            np.savez(directory / name, **arrays)
        else:
            lower = {key.replace("W_", "w_"): tensor for key, tensor in tensors.items()}
            save_file(lower, directory / name)
    (directory / "config.yaml").write_text(
        "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n"
        f"feature_output_hook: hook_mlp_out\ntranscoders: {json.dumps(names)}\n"
    )
    return directory


if __name__ == "__main__":
    main()
