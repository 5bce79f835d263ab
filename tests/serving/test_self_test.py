"""The small graph and steer of the start: no false alarm, and what is wrong is noticed."""

import logging
from typing import Any

import pytest
import torch

import attribution.transcoder_layer
import model_loader
import steering.features
import steering.readers
from serving import fitness, self_test
from serving.consistency import InconsistentError
from serving.fitness import UnfitError
from tests.steering.test_precision import dictionaries
from tests.support.demo_worker import demo_settings
from tests.support.steering_cases import PROMPT
from tests.support.tiny_models import ARCHITECTURES, tiny_model

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "parallel"])
def test_a_sound_model_of_any_kind_passes(architecture: str, dtype: torch.dtype) -> None:
    # A third of the dictionaries each, another one for the next architecture and dtype.
    start = (list(ARCHITECTURES).index(architecture) + DTYPES.index(dtype)) % 3
    for chosen in list(dictionaries(architecture))[start::3]:
        self_test.run(tiny_model(architecture, dtype=dtype, **chosen), PROMPT)


@pytest.mark.parametrize("chosen", [{}, {"model_dtype": "bfloat16"}, {"model_engine": "nnsight"}])
def test_the_demo_passes_without_a_warning(
    chosen: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    fitness.check_model(model_loader.load(demo_settings(**chosen)))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_set_of_which_no_feature_is_active_passes() -> None:
    model = tiny_model("llama", "relu")
    with torch.no_grad():
        for transcoder in model.transcoders:
            transcoder.b_enc.fill_(-1e3)
    self_test.run(model, PROMPT)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_encoder_that_computes_wrong_is_noticed(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = attribution.transcoder_layer.linear
    monkeypatch.setattr(attribution.transcoder_layer, "linear", lambda *args: linear(*args) * 1.1)
    with pytest.raises(InconsistentError, match=r"layer 0 have other activations .* in float32"):
        self_test.run(tiny_model("llama", "relu", dtype=dtype), PROMPT)


def test_a_steer_that_reads_other_activations_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = steering.readers.TranscoderReader
    read = reader.__call__
    monkeypatch.setattr(reader, "__call__", lambda *args: read(*args) * 1.01)
    with pytest.raises(InconsistentError, match="other activations in a graph than in a steer"):
        self_test.run(tiny_model("gemma2", "jump_relu"), PROMPT)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_edges_that_are_off_are_noticed(
    architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    attribute = attribution.attribute

    def off(*args: Any, **kwargs: Any) -> Any:
        graph = attribute(*args, **kwargs)
        graph.adjacency_matrix *= 1.1
        return graph

    monkeypatch.setattr(attribution, "attribute", off)
    with pytest.raises(InconsistentError, match="edges from the last layer's features"):
        self_test.run(tiny_model(architecture, "relu", "residual", dtype=dtype), PROMPT)


def test_a_steer_that_writes_what_it_should_not_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    write = steering.features._write_deltas

    def off(layer: int, pending: dict[int, torch.Tensor], acts: torch.Tensor) -> torch.Tensor:
        written = write(layer, pending, acts)
        return torch.cat([written[:-1], -written[-1:]])

    monkeypatch.setattr(steering.features, "_write_deltas", off)
    with pytest.raises(InconsistentError, match="set to the activations that they have"):
        self_test.run(tiny_model("llama", "relu"), PROMPT)


def test_the_sentence_names_the_model_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = model_loader.load(demo_settings())
    linear = attribution.transcoder_layer.linear
    monkeypatch.setattr(attribution.transcoder_layer, "linear", lambda *args: linear(*args) * 1.1)
    with pytest.raises(UnfitError, match=r"^demo is not computed right: .*worker replaced$"):
        fitness.check_model(loaded)


def swap_layers(transcoders: Any) -> None:
    transcoders.transcoders = torch.nn.ModuleList(reversed(list(transcoders)))


def of_another_model(transcoders: Any) -> None:
    for transcoder in transcoders:
        for weight in (transcoder.W_enc, transcoder.W_dec):
            weight.copy_(weight[torch.randperm(len(weight))][:, torch.randperm(weight.shape[1])])


@pytest.mark.parametrize("harm", [swap_layers, of_another_model])
def test_a_set_that_explains_nothing_is_warned_of_and_served(
    harm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = model_loader.load(demo_settings())
    torch.manual_seed(0)
    with torch.no_grad():
        harm(loaded.model.transcoders)
    with caplog.at_level(logging.DEBUG, logger="serving.self_test"):
        fitness.check_model(loaded)
    [warning] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "TRANSCODER_SET" in warning.getMessage()
