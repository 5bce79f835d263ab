"""What the small files of a model and a set decide is refused before any weights are asked for.

All files of weights are there and hold no tensor: whoever read one would say that it is damaged.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3Config,
)

import model_loader
from loading.model_folder import SINGLE_FILE
from model_loader import ModelLoadError
from settings import Settings
from tests.support.complete_sets import lorsa_config, transcoder_config
from tests.support.demo_worker import settings_at
from tests.support.hub_client import HubClient, hub_client
from tests.support.model_cache import write_repositories
from tests.support.model_configs import GPT2_SHAPE, SHAPE
from tests.support.model_hub import ModelHub, Repository, running_hub
from tests.support.tiny_families import FAMILIES, write_family
from tests.support.tiny_sets import N_LAYERS, Repositories, config_yaml

MODEL, SET, COMPLETE = "someone/tiny", "someone/tiny-transcoders", "someone/tiny-complete"
NO_WEIGHTS = b"no tensor"

LLAMA = LlamaConfig(**SHAPE)
QWEN = Qwen3Config(**SHAPE)
GPT2 = GPT2Config(**GPT2_SHAPE)


def model(config: PretrainedConfig, architecture: str, **changes: Any) -> dict[str, bytes]:
    stored = {**config.to_dict(), "architectures": [architecture], **changes}
    return {
        "config.json": json.dumps(stored).encode(),
        "tokenizer.json": b"{}",
        SINGLE_FILE: NO_WEIGHTS,
    }


def per_layer(
    read: str = "mlp.hook_in", written: str = "mlp.hook_out", n_layers: int = N_LAYERS
) -> dict[str, bytes]:
    files = {f"layer_{n}.safetensors": NO_WEIGHTS for n in range(n_layers)}
    return {"config.yaml": config_yaml("transcoder_set", read, written), **files}


def listed(n_layers: int) -> dict[str, bytes]:
    addresses = tuple(f"hf://someone/elsewhere/{n}.safetensors" for n in range(n_layers))
    return {"config.yaml": config_yaml("transcoder_set", "mlp.hook_in", "mlp.hook_out", addresses)}


def complete(n_layers: int = N_LAYERS, **changes: Any) -> dict[str, bytes]:
    changes = {"d_model": SHAPE["hidden_size"], **changes}
    files = {}
    for n in range(n_layers):
        for kind, config in (("transcoder", transcoder_config), ("lorsa", lorsa_config)):
            folder = f"{kind}/2x/k4/layer{n}_{kind}_2x_k4"
            files[f"{folder}/config.json"] = json.dumps(config(n, **changes)).encode()
            files[f"{folder}/sae_weights.safetensors"] = NO_WEIGHTS
    return files


SERVED = per_layer()
SERVED_MODEL = model(QWEN, "Qwen3ForCausalLM")
# The files of a model and of its set, the engine, and the words of the refusal.
CASES: dict[str, tuple[dict[str, bytes], dict[str, bytes], str | None, str]] = {
    "another model": (
        model(OPTConfig(num_hidden_layers=N_LAYERS), "OPTForCausalLM"), SERVED, None,
        "is a OPTForCausalLM; the worker serves GPT2LMHeadModel, ",
    ),
    "another model, nnsight": (
        model(GPTNeoXConfig(num_hidden_layers=N_LAYERS), "GPTNeoXForCausalLM"), SERVED, "nnsight",
        "is a GPTNeoXForCausalLM, and MODEL_ENGINE=nnsight serves ",
    ),
    "a model of the other engine": (
        model(GPT2, "GPT2LMHeadModel"), SERVED, "nnsight", "set MODEL_ENGINE=transformerlens",
    ),
    "another model, complete": (
        model(OPTConfig(num_hidden_layers=N_LAYERS), "OPTForCausalLM"), complete(), None,
        "is a OPTForCausalLM; the worker serves ",
    ),
    "a model without exact edges, complete": (
        model(GPT2, "GPT2LMHeadModel"), complete(), None, "has norms of the kind LN",
    ),
    "a capped model, complete": (
        model(Gemma2Config(**SHAPE), "Gemma2ForCausalLM"), complete(), None,
        "has a final logit soft cap of 30",
    ),
    "a model for another task": (
        model(LLAMA, "LlamaForSequenceClassification"), SERVED, None,
        "is a LlamaForSequenceClassification; the worker serves ",
    ),
    "a type that no library knows": (
        model(LLAMA, "LlamaForCausalLM", model_type="novel"), SERVED, None, "model_type='novel'",
    ),
    "a type that no library knows, nnsight": (
        model(LLAMA, "LlamaForCausalLM", model_type="novel"), SERVED, "nnsight",
        "model_type='novel'",
    ),
    "two models": (
        model(GPT2, "LlamaForCausalLM"), SERVED, None,
        "architectures: LlamaForCausalLM and model_type: gpt2",
    ),
    "two models, nnsight": (
        model(LLAMA, "Qwen3ForCausalLM"), SERVED, "nnsight",
        "architectures: Qwen3ForCausalLM and model_type: llama",
    ),
    "an activation": (
        model(LLAMA, "LlamaForCausalLM", hidden_act="tanh"), SERVED, None,
        "activation function 'tanh'",
    ),
    "quantised weights": (
        model(LLAMA, "LlamaForCausalLM", quantization_config={"quant_method": "fp8"}), SERVED, None,
        r"quantised \(fp8\)",
    ),
    "quantised weights, nnsight": (
        model(LLAMA, "LlamaForCausalLM", quantization_config={"quant_method": "fp8"}), SERVED,
        "nnsight", r"quantised \(fp8\)",
    ),
    "a scaling without its factor": (
        model(LLAMA, "LlamaForCausalLM", rope_scaling={"rope_type": "linear"}), SERVED, None,
        "model_type 'llama': KeyError.*'factor'",
    ),
    "a scaling without its factor, nnsight": (
        model(LLAMA, "LlamaForCausalLM", rope_scaling={"rope_type": "yarn"}), SERVED, "nnsight",
        "model_type 'llama': KeyError.*'factor'",
    ),
    "a rotation by the length, nnsight": (
        model(LLAMA, "LlamaForCausalLM", rope_scaling={
            "rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 8,
            "long_factor": [1.0] * 8, "original_max_position_embeddings": 64,
        }),
        SERVED, "nnsight", "longrope",
    ),
    "a set of more layers": (
        SERVED_MODEL, per_layer(n_layers=4), None,
        "the model has 3 layers, its transcoders cover 4",
    ),
    "a list of fewer layers": (
        SERVED_MODEL, listed(2), None,
        "the model has 3 layers, its transcoders cover 2",
    ),
    "a complete set of more layers": (
        SERVED_MODEL, complete(4), None,
        "the model has 3 layers, its transcoders cover 4",
    ),
    "a complete set of another width": (
        SERVED_MODEL, complete(d_model=16), None,
        "d_model of the model is 32, that of its transcoders 16",
    ),
}  # fmt: skip


def names_of(files: dict[str, bytes]) -> tuple[str, Repositories]:
    """What a set of these files is called, and the repository it is in."""
    if "config.yaml" in files:
        return SET, {SET: files}
    return f"{COMPLETE}/2x/k4", {COMPLETE: files}


def write(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture(scope="module")
def hub() -> Iterator[tuple[ModelHub, HubClient]]:
    with running_hub() as running, hub_client(running.url) as client:
        yield running, client


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize("case", CASES)
class TestWhatSmallFilesDecide:
    def test_in_directories(self, case: str, lazy: bool, tmp_path: Path) -> None:
        of_model, of_set, engine, words = CASES[case]
        folder = write(tmp_path / "set", of_set)
        folder = folder if "config.yaml" in of_set else folder / "2x" / "k4"
        settings = settings_at(
            tmp_path, model_id=str(write(tmp_path / "model", of_model)), transcoder_set=str(folder),
            model_engine=engine, lazy_decoder=lazy,
        )  # fmt: skip
        with pytest.raises(ModelLoadError, match=words):
            model_loader.load(settings)

    def test_in_a_cache(self, case: str, lazy: bool, tmp_path: Path) -> None:
        of_model, of_set, engine, words = CASES[case]
        name, repositories = names_of(of_set)
        settings = settings_at(
            tmp_path, model_id=MODEL, transcoder_set=name, model_engine=engine, lazy_decoder=lazy
        )
        write_repositories(settings.hub_cache, {MODEL: of_model, **repositories})
        with pytest.raises(ModelLoadError, match=words):
            model_loader.load(settings)


@pytest.mark.parametrize("case", CASES)
def test_what_small_files_decide_is_refused_before_weights_are_downloaded(
    case: str, hub: tuple[ModelHub, HubClient], tmp_path: Path
) -> None:
    of_model, of_set, engine, words = CASES[case]
    name, repositories = names_of(of_set)
    running, client = hub
    running.requests.clear()
    running.repositories = {
        repository: Repository(files)
        for repository, files in {MODEL: of_model, **repositories}.items()
    }
    home = settings_at(tmp_path)
    paths = {key: getattr(home, key) for key in ("hf_home", "image_weights", "runpod_model_cache")}
    answer = client.ask(
        "load", MODEL, **paths, device="cpu", transcoder_set=name, model_engine=engine
    )
    assert re.search(words, answer["error"]), answer["error"]
    assert running.requests
    fetched = [request for request in running.requests if request.endswith("safetensors")]
    # A model that is served comes before the set.
    assert all(of_model is SERVED_MODEL and MODEL in request for request in fetched)


@pytest.fixture(params=[None, "nnsight"], ids=["transformerlens", "nnsight"])
def sound(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> Settings:
    """The settings of a model and a set that no weight can be read of, sound otherwise."""
    family = FAMILIES["Qwen 3"]
    settings = settings_at(
        tmp_path, model_id=family.model, transcoder_set=family.transcoder_set,
        model_engine=request.param,
    )  # fmt: skip
    write_family(settings.hub_cache, family)
    for module in ("loading.layers", "loading.checkpoint"):
        monkeypatch.setattr(f"{module}.read_tensor", lambda *_, **__: pytest.fail("weights read"))
    return settings


def change(settings: Settings, name: str, content: bytes) -> None:
    """Write another file of a name into the one snapshot that has it."""
    (file,) = settings.hub_cache.glob(f"*/snapshots/*/{name}")
    file.unlink()
    file.write_bytes(content)


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
def test_hooks_that_the_model_lacks_are_refused_before_weights_are_read(
    sound: Settings, lazy: bool
) -> None:
    change(sound, "config.yaml", config_yaml("transcoder_set", "mlp.hook_pre", "mlp.hook_out"))
    settings = sound.model_copy(update={"lazy_decoder": lazy, "lazy_encoder": lazy})
    with pytest.raises(ModelLoadError, match=r"mlp\.hook_pre"):
        model_loader.load(settings)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[", "generation_config.json is no JSON"),
        (b'{"eos_token_id": "</s>"}', "generation_config.json has eos_token_id: '</s>'"),
    ],
    ids=["no JSON", "no token"],
)
def test_a_generation_config_that_is_none_is_refused_before_weights_are_read(
    sound: Settings, content: bytes, words: str
) -> None:
    change(sound, "generation_config.json", content)
    with pytest.raises(ModelLoadError, match=words):
        model_loader.load(sound)
