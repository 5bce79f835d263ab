"""From the start of a worker to its first graph on a large set, beside what the disk gives.

    python -m benchmarks.start_time --gigabytes 2

Gemma-2-2B with GemmaScope's transcoders, 18 GB in float32, with fewer layers: tensors have their
real sizes, the vocabulary goes by the layers, weights are random. `handler.py` is started as it is
in production, in bfloat16, and answers one short prompt; before each start the files are put out of
the page cache. Beside it stand what reading the same files from first to last takes, and a start
without weights: the libraries' imports, and the first graph of the demo model.

"Read" are the bytes that the process had read from the disk, beside those of the files. Memory is
the process's own, and with files that are mapped into it. The last column is an estimate for all
18 GB on a disk of 1 GB/s: the longer of reading, and of imports and then loading, and the graph.
Imports, loading and the graph count in CPU time there, which leaves other processes on the machine
out, and loading by the bytes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Gemma2Config, Gemma2ForCausalLM

from benchmarks.llama_files import copy_tokenizer
from benchmarks.measure import cpu_seconds, status_bytes
from loading.model_folder import INDEX
from loading.registry import DEMO

ROOT = Path(__file__).parent.parent
# Gemma-2-2B's, and GemmaScope's.
N_LAYERS, D_MODEL, D_VOCAB, N_FEATURES = 26, 2304, 256_000, 16_384
FULL_BYTES = 18.3e9
NAMED_DISK = 1e9  # bytes a second
# Files, and whether decoders stay on the disk until a job needs rows of them.
FORMS = {
    "published": ("published", False),
    "converted": ("converted", False),
    "converted, lazy decoders": ("converted", True),
}
# What a line of the worker has in it when a stage is over.
STAGES = {
    "imports": "imported the libraries",
    "weights": "loaded ",
    "graph": " to load the model, ",
}
JOB = {"action": "generate-graph", "prompt": "Michael Jordan joue au", "max_feature_nodes": 100}


class Start(NamedTuple):
    ends: dict[str, float]  # seconds from the start of the process to the end of each stage
    cpu: dict[str, float]  # of CPU until then
    read_bytes: int
    own_bytes: int  # peak of anonymous memory
    peak_bytes: int  # with mapped files

    @property
    def seconds(self) -> float:
        return self.ends["graph"]

    def cpu_in(self, stage: str) -> float:
        before = list(STAGES)[list(STAGES).index(stage) - 1]
        return self.cpu[stage] - self.cpu[before]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2, help="of all files together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="kept, and used again, for further runs")
    arguments = parser.parse_args()
    n_layers = max(1, round(arguments.gigabytes * 1e9 / (FULL_BYTES / N_LAYERS)))
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.directory or Path(temporary)
        if not (directory / "transcoders").is_dir():
            write(directory, n_layers)
        report(directory, arguments.rounds)


def report(directory: Path, rounds: int) -> None:
    demo = Path(DEMO.model), Path(DEMO.transcoder_set)
    empty = [start(*demo, directory / "published", lazy=False) for _ in range(rounds)]
    imports = median(s.cpu["imports"] for s in empty)
    print(
        f"without weights: imports {median(s.ends['imports'] for s in empty):.2f} s "
        f"({imports:.2f} of CPU), first graph {_seconds(empty):.2f} s, "
        f"memory {median(s.own_bytes for s in empty) / 1e9:.2f} GB"
    )
    headings = (
        "files | size | disk alone | imports | loaded | first graph | CPU of loading | ratio | "
        "read | own memory | with files | 18 GB at 1 GB/s"
    )
    print(f"| {headings} |\n{'| --- ' * 12}|")
    for form, (layout, lazy) in FORMS.items():
        home = directory / layout
        if layout == "converted":
            convert(directory, home)
        files = files_of(directory, layout)
        size = sum(path.stat().st_size for path in files)
        disk, starts = [], []
        for _ in range(rounds):
            disk.append(sequential_read(files))
            forget(files)
            starts.append(start(directory / "model", directory / "transcoders", home, lazy=lazy))
        floor = max(median(disk), _seconds(empty))
        cells = row(starts, size, floor, imports)
        print(f"| {form} | {size / 1e9:.2f} GB | {median(disk):.2f} s | {cells}", flush=True)


def row(starts: list[Start], size: int, floor: float, imports: float) -> str:
    ends = [median(s.ends[stage] for s in starts) for stage in STAGES]
    loading, graph = (median(s.cpu_in(stage) for s in starts) for stage in ("weights", "graph"))
    full = max(FULL_BYTES / NAMED_DISK, imports + loading * FULL_BYTES / size) + graph
    return (
        f"{' | '.join(f'{end:.2f}' for end in ends)} s | {loading:.2f} s | {ends[2] / floor:.2f} | "
        f"{median(s.read_bytes for s in starts) / size:.2f} | "
        f"{median(s.own_bytes for s in starts) / 1e9:.2f} GB | "
        f"{median(s.peak_bytes for s in starts) / 1e9:.2f} GB | "
        f"{full:.1f} s, {full * NAMED_DISK / FULL_BYTES:.2f} |"
    )


def start(model: Path, transcoders: Path, home: Path, *, lazy: bool) -> Start:
    """Start the worker, have it answer one job, and say what that took.

    Args:
        home: HF_HOME, where converted copies are.
        lazy: whether decoders stay on the disk.
    """
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-u", str(ROOT / "handler.py")]
    command += ["--test_input", json.dumps({"input": JOB})]
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=home,
        env=os.environ
        | environment(model, transcoders, home)
        | {"LAZY_DECODER": str(lazy).lower()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    output, own = "", 0
    ends: dict[str, float] = {}
    cpu: dict[str, float] = {}
    while True:
        own = max(own, status_bytes("RssAnon", process.pid))
        output += (process.stdout.read() or b"").decode()
        for stage, mark in STAGES.items():
            if stage not in ends and mark in output:
                ends[stage], cpu[stage] = time.perf_counter() - began, cpu_seconds(process.pid)
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.01)
    output += (process.stdout.read() or b"").decode()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or STAGES["graph"] not in output:
        raise SystemExit(f"the worker ended with {process.returncode}:\n{output}")
    ends.setdefault("graph", time.perf_counter() - began)
    cpu["graph"] = usage.ru_utime + usage.ru_stime
    return Start(ends, cpu, usage.ru_inblock * 512, own, usage.ru_maxrss * 1024)


def environment(model: Path, transcoders: Path, home: Path) -> dict[str, str]:
    return {
        "MODEL_ID": str(model),
        "TRANSCODER_SET": str(transcoders),
        "MODEL_DTYPE": "bfloat16",
        "DEVICE": "cpu",
        "HF_HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def convert(directory: Path, home: Path) -> None:
    model, transcoders = directory / "model", directory / "transcoders"
    subprocess.run(
        [sys.executable, str(ROOT / "model_loader.py"), "convert"],
        env=os.environ | environment(model, transcoders, home),
        check=True,
        capture_output=True,
    )


def files_of(directory: Path, layout: str) -> list[Path]:
    """The files of weights that a start reads, in its order."""
    if layout == "published":
        transcoders = (directory / "transcoders").glob("*.npz")
    else:
        transcoders = (directory / layout).rglob("layer_*.safetensors")
    return [*sorted(transcoders), *sorted((directory / "model").glob("*.safetensors"))]


def forget(files: list[Path]) -> None:
    """Put files out of the page cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sequential_read(files: list[Path]) -> float:
    """Seconds of reading files that aren't in the page cache, one after the other."""
    forget(files)
    buffer = bytearray(8 << 20)
    began = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


def write(directory: Path, n_layers: int) -> None:
    """A model in `model`, transcoders in `transcoders`, a file for each layer."""
    torch.manual_seed(0)
    _write_model(directory / "model", n_layers)
    _write_transcoders(directory / "transcoders", n_layers)


def _write_model(directory: Path, n_layers: int) -> None:
    config = Gemma2Config(
        architectures=["Gemma2ForCausalLM"],
        num_hidden_layers=n_layers,
        vocab_size=D_VOCAB * n_layers // N_LAYERS,
        hidden_size=D_MODEL,
        intermediate_size=9216,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=8192,
        dtype=torch.float32,
    )
    config.save_pretrained(directory)
    copy_tokenizer(directory)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in Gemma2ForCausalLM(config).named_parameters()}
    weight_map = {}
    for number, names in enumerate(_by_layer(shapes)):
        file = f"model-{number:05}.safetensors"
        weights = {name: _random(*shapes[name], scale=0.02) for name in names}
        save_file(weights, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def _by_layer(shapes: dict[str, Any]) -> Iterator[list[str]]:
    """Names of tensors, those of a layer together."""
    parts: dict[str, list[str]] = {}
    for name in shapes:
        found = re.search(r"layers\.\d+\.", name)
        parts.setdefault(found[0] if found else "", []).append(name)
    yield from parts.values()


def _write_transcoders(directory: Path, n_layers: int) -> None:
    """GemmaScope's layout; some hundred features of a layer are active at a token."""
    directory.mkdir(parents=True)
    names = [f"layer_{layer}.npz" for layer in range(n_layers)]
    for name in names:
        arrays: dict[str, Any] = {
            "W_enc": _random(D_MODEL, N_FEATURES, scale=0.036).numpy(),  # of inputs of length 48
            "W_dec": _random(N_FEATURES, D_MODEL, scale=0.02).numpy(),
            "b_enc": np.zeros(N_FEATURES, np.float32),
            "b_dec": np.zeros(D_MODEL, np.float32),
            "threshold": np.full(N_FEATURES, 2.5, np.float32),
        }
        np.savez(directory / name, **arrays)
    (directory / "config.yaml").write_text(
        "model_kind: transcoder_set\nfeature_input_hook: ln2.hook_normalized\n"
        f"feature_output_hook: hook_mlp_out\ntranscoders: {json.dumps(names)}\n"
    )


def _random(*shape: int, scale: float) -> torch.Tensor:
    return torch.empty(shape).uniform_(-scale, scale)


def _seconds(starts: list[Start]) -> float:
    return median(s.seconds for s in starts)


if __name__ == "__main__":
    main()
