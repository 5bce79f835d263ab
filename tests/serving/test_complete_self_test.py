"""The self-test of a complete replacement model: no false alarm, and what is wrong is noticed."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import model_loader
import serving.complete_self_test as self_test
from attribution.complete import modules
from attribution.complete.tracing import _Side
from loading.loaded_model import LoadedModel
from serving import fitness
from serving.consistency import InconsistentError, UnexplainedError
from serving.fitness import UnfitError
from steering.complete import LorsaReader, TranscoderReader
from tests.support.complete_cases import CASES, ONE_OF_EACH, write_case
from tests.support.complete_engine import complete_model
from tests.support.cuda_devices import cuda_device
from tests.support.demo_worker import demo_settings

DTYPES = ["float32", "bfloat16", "float16"]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


def demo(**changed: Any) -> LoadedModel:
    return model_loader.load(
        demo_settings(**{"model_id": "demo", "transcoder_set": "demo-crm", **changed})
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_numbers_of_any_kind_of_module_agree(name: str, dtype: str, cases: Path) -> None:
    folders = write_case(cases, CASES[name])
    model = complete_model(folders, getattr(torch, dtype))
    # Random modules explain nothing, which is the last that is checked but the second run.
    with pytest.raises(UnexplainedError):
        self_test.run(model, model.tokenizer.encode(CASES[name].prompt))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
def test_the_demo_passes_without_a_warning(
    dtype: str, lazy: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fitness.check_model(demo(model_dtype=dtype, lazy_decoder=lazy))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_demo_passes_on_a_cuda_device(dtype: str) -> None:
    with cuda_device("emulated"):
        loaded = model_loader.load(
            demo_settings(model_id="demo", transcoder_set="demo-crm", model_dtype=dtype)
            .model_copy(update={"device": "cuda"})
        )  # fmt: skip
        fitness.check_model(loaded)


@pytest.mark.parametrize("n_context", [2, 4])
def test_a_model_with_room_for_a_few_tokens_passes(n_context: int) -> None:
    loaded = demo()
    loaded.model.cfg.n_ctx = n_context
    assert len(fitness._tokens(loaded)) <= n_context
    fitness.check_model(loaded)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_encoder_that_computes_wrong_is_noticed(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = modules.product
    monkeypatch.setattr(modules, "product", lambda *args: product(*args) * 1.5)
    with pytest.raises(InconsistentError, match="layer 0's Lorsa have other activations"):
        self_test.run(demo(model_dtype=dtype).model, [5, 100, 7, 42])


@pytest.mark.parametrize("kind", ["Lorsa", "transcoder"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_edges_into_features_that_are_off_are_noticed(
    dtype: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows = self_test.attribution_rows

    def off(local: Any, layers: Tensor, positions: Tensor, reads: Any, rows: Tensor) -> None:
        write_rows(local, layers, positions, reads, rows)
        rows *= 1 if int(layers[0]) % 2 == (kind == "Lorsa") else 1.02

    monkeypatch.setattr(self_test, "attribution_rows", off)
    with pytest.raises(InconsistentError, match=f"edges into features of layer .'s {kind}"):
        self_test.run(demo(model_dtype=dtype).model, [5, 100, 7, 42])


@pytest.mark.parametrize("dtype", DTYPES)
def test_edges_into_logits_that_are_off_are_noticed(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attribute = self_test.complete.attribute

    def off(*args: Any, **kwargs: Any) -> Any:
        graph = attribute(*args, **kwargs)
        graph.adjacency_matrix[-len(graph.logit_targets) :] *= 1.1
        return graph

    monkeypatch.setattr(self_test.complete, "attribute", off)
    with pytest.raises(InconsistentError, match="into the logits are off"):
        self_test.run(demo(model_dtype=dtype).model, [5, 100, 7, 42])


@pytest.mark.parametrize("dtype", DTYPES)
def test_traces_that_do_not_sum_to_the_score_are_noticed(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    against = _Side.against
    monkeypatch.setattr(_Side, "against", lambda *args: against(*args) * 1.02)
    with pytest.raises(InconsistentError, match="what explains the attention of layer"):
        self_test.run(demo(model_dtype=dtype).model, [5, 100, 7, 42])


def test_something_left_over_by_the_first_run_is_noticed() -> None:
    loaded = demo()
    generated: list[None] = []

    def drift(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        """After the last token that the steer generates, every pass goes another way."""
        generated.extend([None] * (output.shape[1] == 1))
        whole = output.shape[1] > 1
        return output + 5 * output.roll(1, -1) if generated and whole else output

    loaded.model.language_model.blocks[3].mlp.register_forward_hook(drift)
    with pytest.raises(UnfitError, match=r"into the logits are off|on its second run"):
        fitness.check_model(loaded)


def test_numbers_that_overflow_name_the_dtype() -> None:
    loaded = demo(model_dtype="float16")
    with torch.no_grad():
        weight = loaded.model.language_model.blocks[1].mlp.W_out
        weight.copy_(weight.sign() * 6e4)
    with pytest.raises(UnfitError, match=r"float16.*MODEL_DTYPE=bfloat16"):
        fitness.check_model(loaded)


@pytest.mark.parametrize("reader", [TranscoderReader, LorsaReader])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_steer_that_reads_other_activations_is_noticed(
    dtype: str, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reader.__call__
    monkeypatch.setattr(reader, "__call__", lambda *args: read(*args) * 1.1)
    with pytest.raises(InconsistentError, match="other activations in a steer than in a graph"):
        self_test.run(demo(model_dtype=dtype).model, [5, 100, 7, 42])


class TestWhatTheSetExplains:
    """The weights of a set are used as they are: no file says whether they are folded."""

    def _unfold(self, model: modules.CompleteModel, layers: range, factor: float) -> Any:
        """Modules whose decoders write to outputs of another scale."""

        def unfolded(module: Any, layer: int) -> Any:
            if layer not in layers:
                return module
            rows = module.decoder.rows
            decoder = replace(module.decoder, rows=lambda features: rows(features) * factor)
            return replace(module, decoder=decoder, b_D=module.b_D * factor)

        lorsas = [unfolded(module, layer) for layer, module in enumerate(model.lorsas)]
        transcoders = [unfolded(module, layer) for layer, module in enumerate(model.transcoders)]
        return replace(model, lorsas=lorsas, transcoders=transcoders)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_unfolded_weights_are_refused_by_name(self, dtype: str) -> None:
        loaded = demo(model_dtype=dtype)
        loaded = replace(loaded, model=self._unfold(loaded.model, range(4), 9.8))
        with pytest.raises(UnfitError) as raised:
            fitness.check_model(loaded)
        assert "demo-crm doesn't explain the model: in 8 of 8 modules" in str(raised.value)
        assert "layer 3's Lorsa (" in str(raised.value)
        assert "times)" in str(raised.value)
        assert "TRANSCODER_SET" in str(raised.value)

    def test_one_layer_of_them_is_warned_of_by_name_and_served(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        loaded = demo()
        loaded = replace(loaded, model=self._unfold(loaded.model, range(2, 3), 9.8))
        fitness.check_model(loaded)
        [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert "in 2 of 8 modules" in warning
        assert "layer 2's Lorsa (8." in warning
        assert "layer 2's transcoder (8." in warning
        assert "folded" in warning

    def test_modules_of_other_layers_are_noticed(self) -> None:
        loaded = demo()
        model = replace(
            loaded.model,
            lorsas=loaded.model.lorsas[::-1],
            transcoders=loaded.model.transcoders[::-1],
        )
        with pytest.raises(UnfitError, match="doesn't explain the model"):
            fitness.check_model(replace(loaded, model=model))
