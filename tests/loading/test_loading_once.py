"""Loading reads each tensor of the files once, and holds the weights once."""

import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.profiler import ProfilerActivity, profile
from transformers import Gemma2Config

from loading.checkpoint import weight_files
from loading.registry import DEMO
from model_loader import load
from settings import Settings
from tests.support.model_configs import hugging_face_model

N_LAYERS, D_MODEL, N_FEATURES = 3, 64, 16_384
CONFIG = Gemma2Config(
    architectures=["Gemma2ForCausalLM"],
    vocab_size=1_500,
    hidden_size=D_MODEL,
    intermediate_size=1_024,
    num_hidden_layers=N_LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    sliding_window=32,
)
LARGEST = 2 * N_FEATURES * D_MODEL  # bytes of an encoder in 16 bits
PIECES = 4 << 20  # that an .npz file is read in, and what Python holds meanwhile
LAYOUTS = ("npz", "published safetensors", "safetensors")
ENGINES = ("transformerlens", "nnsight")


@pytest.fixture(params=LAYOUTS)
def transcoders(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "transcoders"
    folder.mkdir()
    names = []
    for layer in range(N_LAYERS):
        encoder = torch.randn(N_FEATURES, D_MODEL)
        tensors = {
            "W_enc": encoder if request.param == "safetensors" else encoder.T.contiguous(),
            "W_dec": torch.randn(N_FEATURES, D_MODEL),
            "b_enc": torch.randn(N_FEATURES),
            "b_dec": torch.randn(D_MODEL),
        }
        threshold = torch.ones(N_FEATURES)
        if request.param == "npz":
            names.append(f"layer_{layer}.npz")
            arrays: dict[str, Any] = {n: t.numpy() for n, t in tensors.items()}
            np.savez(folder / names[-1], threshold=threshold.numpy(), **arrays)
            continue
        names.append(f"layer_{layer}.safetensors")
        if request.param == "safetensors":
            tensors["activation_function.threshold"] = threshold
        else:
            tensors = {n.lower(): t for n, t in tensors.items()} | {"threshold": threshold}
        save_file(tensors, folder / names[-1])
    (folder / "config.yaml").write_text(
        "model_kind: transcoder_set\nfeature_input_hook: ln2.hook_normalized\n"
        f"feature_output_hook: hook_mlp_out\ntranscoders: {names}\n"
    )
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    hugging_face_model(CONFIG).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(Path(DEMO.model) / name, folder)
    return folder


def loaded(model: Path, transcoders: Path, engine: str = "transformerlens") -> Any:
    return load(
        Settings(
            _env_file=None,
            device="cpu",
            model_id=str(model),
            transcoder_set=str(transcoders),
            model_dtype="bfloat16",
            model_engine=engine,
            lazy_decoder=False,
        )
    ).model


def memory_of(call: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that torch's tensors, numpy's arrays and Python took at most, and those kept.

    Pages of files that are mapped into memory are none of these.
    """
    tracemalloc.start()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            kept = call()
        _, others = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    events = profiled.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    assert changes
    now = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        now += change
        peak = max(peak, now)
    tensors = [*kept.parameters(), *kept.transcoders.parameters()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return peak + others, sum(storages.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_loading_takes_the_memory_of_the_weights_and_of_a_tensor_or_two(
    engine: str, model: Path, transcoders: Path
) -> None:
    loaded(model, transcoders, engine)  # what is imported on the way, and kept for later
    peak, weights = memory_of(lambda: loaded(model, transcoders, engine))
    assert weights > 6 * LARGEST
    assert peak < weights + 2 * LARGEST + PIECES


def test_each_tensor_of_a_file_is_read_once(
    model: Path, transcoders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[tuple[str, str]] = Counter()

    class Counted:
        """A file of tensors that notes what is read of it."""

        def __init__(self, path: Path, **how: Any) -> None:
            self._name, self._file = Path(path).name, safe_open(path, **how)

        def __enter__(self) -> "Counted":
            self._file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self._file.__exit__(*error)

        def keys(self) -> list[str]:
            return self._file.keys()

        def get_slice(self, name: str) -> Any:
            """What a header says of a tensor, and nothing to read it with."""
            held = self._file.get_slice(name)
            return SimpleNamespace(get_shape=held.get_shape, get_dtype=held.get_dtype)

        def get_tensor(self, name: str) -> torch.Tensor:
            read[self._name, name] += 1
            return self._file.get_tensor(name)

    monkeypatch.setattr("loading.tensor_files.safe_open", Counted)
    loaded(model, transcoders)
    expected = set()
    for path in [*weight_files(model), *transcoders.glob("*.safetensors")]:
        with safe_open(path, framework="pt") as file:
            expected |= {(path.name, name) for name in file.keys()}  # noqa: SIM118
    assert read == dict.fromkeys(expected, 1)
