"""A complete model as it is loaded: a plain language model, and a module for every sublayer."""

import json
import logging
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from circuit_tracer.transcoder import TranscoderSet
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoModelForCausalLM

import model_loader
import start
from attribution.complete.modules import CompleteModel, Transcoder
from loading import UnsupportedArchitectureError
from loading.complete_build import check_architecture
from loading.loaded_model import LoadedModel
from loading.registry import DEMO, DEMO_CRM, REGISTRY
from loading.selection import select
from model_loader import ModelLoadError
from serving import fitness
from serving.identity import identify
from settings import Settings, SettingsError, read_settings
from steering.kinds import n_features
from tests.support.complete_sets import lorsa_config, module_folder, write_module, write_set
from tests.support.cuda_devices import DEVICES, cuda_device
from tests.support.demo_worker import ask, demo_settings, settings_at
from tests.support.fitted_sets import fit_set
from tests.support.hub_client import run_command
from tests.support.model_cache import commit_of
from tests.support.tiny_families import COMPLETE, write_family
from tests.support.tiny_models import ARCHITECTURES

_IDS = [5, 100, 7, 42, 9, 300]


def _demo_set(tmp_path: Path, **changes: Any) -> Path:
    """A random set for the demo's language model."""
    return write_set(tmp_path / "set", 4, d_model=96, n_ctx=64, **changes)


def _settings(tmp_path: Path, **changes: Any) -> Settings:
    name = _demo_set(tmp_path)
    return demo_settings(**{"model_id": "demo", "transcoder_set": str(name), **changes})


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    return model_loader.load(_settings(tmp_path))


def test_the_language_model_is_plain_and_predicts_what_hugging_face_s_does(
    loaded: LoadedModel,
) -> None:
    assert type(loaded.model.language_model) is HookedTransformer
    reference = AutoModelForCausalLM.from_pretrained(DEMO.model, torch_dtype=torch.float32)
    tokens = torch.tensor([_IDS])
    with torch.inference_mode():
        ours = loaded.model.language_model(tokens)
        theirs = reference(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_is_loaded_in_each_dtype_from_files_of_each(
    tmp_path: Path, dtype: str, lazy: bool
) -> None:
    name = _demo_set(tmp_path, dtype=torch.bfloat16)
    loaded = model_loader.load(
        demo_settings(
            model_id="demo", transcoder_set=str(name), model_dtype=dtype, lazy_decoder=lazy
        )
    )
    assert loaded.is_complete
    assert loaded.dtype is getattr(torch, dtype)
    assert (len(loaded.model.lorsas), len(loaded.model.transcoders)) == (4, 4)
    for modules in (loaded.model.lorsas, loaded.model.transcoders):
        rows = modules[3].decoder.rows(torch.tensor([1, 190]))
        assert (rows.shape, rows.dtype) == ((2, 96), loaded.dtype)
    held = [tensor for _, tensor in loaded.weights() if tensor.ndim == 2]
    assert {tensor.dtype for tensor in held} == {loaded.dtype, torch.float32}  # rotary tables


def test_what_the_rest_asks_is_answered_without_knowing_the_engine(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    assert n_features(loaded.model, 4) == n_features(loaded.model, 5) == 192
    assert loaded.n_context == 64  # of the Lorsas; the language model has more
    assert loaded.entry.transcoder_label == "set/2x/k4"
    assert loaded.entry.source_urls == ()
    assert loaded.device == torch.device("cpu")
    assert identify(loaded, demo_settings(model_id="demo")).transcoders == "set/2x/k4"
    demo = model_loader.get_model(demo_settings())
    assert not demo.is_complete
    assert n_features(demo.model, 0) == 1024


def test_a_worker_with_a_complete_set_is_fit_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(tmp_path)
    fit_set(model_loader.load(settings), tmp_path / "set")
    loaded = model_loader.load(settings)
    fitness.check_weights(loaded)
    fitness.check_model(loaded)
    monkeypatch.setattr(model_loader, "_loaded", loaded)
    output = ask({"action": "forward-pass", "prompt": "Michael Jordan joue au"})
    assert output["salient_logits"]


def test_damaged_weights_of_a_module_make_it_unfit(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    loaded = model_loader.load(settings)
    damaged = replace(loaded.model.lorsas[1], W_V=loaded.model.lorsas[1].W_V * float("nan"))
    lorsas = [*loaded.model.lorsas[:1], damaged, *loaded.model.lorsas[2:]]
    loaded = replace(loaded, model=replace(loaded.model, lorsas=lorsas), lock=threading.Lock())
    with pytest.raises(fitness.UnfitError, match=r"lorsas\.1\.W_V .* holds NaN"):
        fitness.check_weights(loaded)


class TestRefusals:
    def _refused(self, settings: Settings, match: str) -> None:
        with pytest.raises(ModelLoadError, match=match):
            model_loader.load(settings)

    def test_a_set_of_another_width(self, tmp_path: Path) -> None:
        name = write_set(tmp_path / "set", 4)
        settings = demo_settings(model_id="demo", transcoder_set=str(name))
        self._refused(settings, "d_model of the model is 96, that of its transcoders 16")

    def test_a_set_of_more_layers(self, tmp_path: Path) -> None:
        name = write_set(tmp_path / "set", 5, d_model=96)
        settings = demo_settings(model_id="demo", transcoder_set=str(name))
        self._refused(settings, "the model has 4 layers, its transcoders cover 5")

    def test_a_set_of_fewer_layers(self, tmp_path: Path) -> None:
        name = write_set(tmp_path / "set", 3, d_model=96)
        settings = demo_settings(model_id="demo", transcoder_set=str(name))
        self._refused(settings, "holds no transcoder/2x/k4/layer3_transcoder_2x_k4/config.json")

    def test_a_value_of_a_configuration(self, tmp_path: Path) -> None:
        settings = _settings(tmp_path)
        folder = module_folder(tmp_path / "set", "lorsa", 2)
        write_module(folder, lorsa_config(2, d_model=96, rotary_scale=2))
        self._refused(settings, "layer2_lorsa_2x_k4/config.json has rotary_scale 2")

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"attribution_engine": "circuit-tracer"}, "ATTRIBUTION_ENGINE='circuit-tracer'"),
            ({"model_engine": "nnsight"}, "MODEL_ENGINE='nnsight'"),
            ({"lazy_encoder": True}, "LAZY_ENCODER=True"),
        ],
    )
    def test_a_setting_that_does_not_go_with_the_set(
        self, tmp_path: Path, changes: dict[str, Any], match: str
    ) -> None:
        with pytest.raises(SettingsError, match=match):
            model_loader.load(_settings(tmp_path, **changes))

    def test_the_engine_of_complete_sets_for_another_set(self, tmp_path: Path) -> None:
        shutil.copytree(DEMO.transcoder_set, tmp_path / "copy")
        settings = demo_settings(
            model_id="demo",
            transcoder_set=str(tmp_path / "copy"),
            attribution_engine="lm-saes-crm",
        )
        with pytest.raises(SettingsError, match="the set is for 'circuit-tracer'"):
            model_loader.load(settings)

    @pytest.mark.parametrize(
        ("architecture", "match"),
        [
            ("gemma2", "a final logit soft cap of 3.0"),
            ("gpt2", "norms of the kind LN"),
            ("folded rms norm", "norms of the kind RMSPre"),
            ("parallel", "norms of the kind LN"),
        ],
    )
    def test_an_architecture_without_exact_edges(self, architecture: str, match: str) -> None:
        cfg = HookedTransformerConfig(
            n_layers=1, d_model=8, n_ctx=8, d_head=4, d_vocab=8, **ARCHITECTURES[architecture]
        )
        with pytest.raises(UnsupportedArchitectureError, match=match):
            check_architecture(cfg, architecture)

    def test_attention_and_mlp_in_parallel(self) -> None:
        changes = {**ARCHITECTURES["llama"], "parallel_attn_mlp": True}
        cfg = HookedTransformerConfig(
            n_layers=1, d_model=8, n_ctx=8, d_head=4, d_vocab=8, **changes
        )
        with pytest.raises(UnsupportedArchitectureError, match="in parallel"):
            check_architecture(cfg, "parallel")


class TestTheDemosTranscoders:
    """circuit-tracer's per-layer set beside Lorsas."""

    def _load(self, tmp_path: Path, **settings: Any) -> LoadedModel:
        from loading.build import build
        from loading.complete_sets import locate_complete
        from loading.sources import storage_of

        lorsas = write_set(tmp_path / "set", 4, kinds=("lorsa",), d_model=96, n_ctx=64)
        chosen = demo_settings(**{"model_id": "demo", "transcoder_set": "demo-crm", **settings})
        selection = select(chosen)
        entry = replace(selection.entry, lorsa_set=str(lorsas))
        assert entry.transcoder_label == "demo-crm"
        storage = storage_of(chosen)
        weights = locate_complete(entry, storage)
        return build(replace(selection, entry=entry), weights, storage, chosen)

    @pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
    def test_their_activations_are_circuit_tracer_s(self, tmp_path: Path, lazy: bool) -> None:
        loaded = self._load(tmp_path, lazy_decoder=lazy)
        theirs = model_loader.get_model(demo_settings()).model
        assert isinstance(theirs.transcoders, TranscoderSet)
        tokens = torch.tensor([_IDS])
        with torch.inference_mode():
            _, cache = loaded.model.language_model.run_with_cache(tokens)
            _, expected = theirs.get_activations(tokens[0])
            for layer, transcoder in enumerate(loaded.model.transcoders):
                read = cache[f"blocks.{layer}.ln2.hook_normalized"][0]
                found = _activations(transcoder, read)[1:]  # theirs zeroes the first position
                torch.testing.assert_close(found, expected[layer, 1:], atol=2e-5, rtol=1e-4)
                assert torch.equal(found > 0, expected[layer, 1:] > 0)
                features = torch.tensor([1000, 3])
                rows = theirs.transcoders[layer]._get_decoder_vectors(features)
                assert torch.equal(transcoder.decoder.rows(features), rows)
                assert torch.equal(transcoder.b_D, theirs.transcoders[layer].b_dec)

    def test_the_demo_has_lorsas_to_go_with_them(self) -> None:
        settings = demo_settings(model_id="demo", transcoder_set="demo-crm")
        loaded = model_loader.load(settings)
        assert loaded.is_complete
        assert loaded.entry == DEMO_CRM
        assert n_features(loaded.model, 7) == 1024
        assert n_features(loaded.model, 6) > 0
        assert loaded.n_context == 512
        fitness.check_weights(loaded)
        fitness.check_model(loaded)

    def test_another_input_than_the_mlp_s_is_refused(self, tmp_path: Path) -> None:
        copy = tmp_path / "transcoders"
        shutil.copytree(DEMO.transcoder_set, copy)
        text = (copy / "config.yaml").read_text().replace("mlp.hook_in", "hook_resid_mid")
        (copy / "config.yaml").write_text(text)
        from loading import WeightsError
        from loading.inspection import inspect
        from loading.per_layer_transcoders import check_convertible
        from loading.sources import storage_of, transcoder_files

        files = transcoder_files(str(copy), storage_of(demo_settings()))
        with pytest.raises(WeightsError, match="feature_input_hook 'hook_resid_mid'"):
            check_convertible(inspect(files))


def _activations(transcoder: Transcoder, read: Tensor) -> Tensor:
    before = read @ transcoder.W_E.T + transcoder.b_E
    assert transcoder.activation.threshold is not None
    return before * (before > transcoder.activation.threshold)


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
def test_loading_takes_the_memory_of_the_weights_and_of_a_tensor_or_two(
    tmp_path: Path, lazy: bool
) -> None:
    name = write_set(tmp_path / "set", 4, d_model=96, expansion_factor=64, n_ctx=64)
    settings = demo_settings(
        model_id="demo", transcoder_set=str(name), model_dtype="bfloat16", lazy_decoder=lazy
    )
    model_loader.load(settings)  # what is imported on the way, and kept for later
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loaded = model_loader.load(settings)
    files = [*name.parents[1].rglob("*.safetensors"), *Path(DEMO.model).glob("*.safetensors")]
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    mapped = {_mapped_bytes(file) for file in files}
    now = peak = 0
    for _, change in changes:
        if abs(change) not in mapped:
            now += change
            peak = max(peak, now)
    largest = 64 * 96 * 96 * 4  # a decoder, or its norms' squares, in float32
    encoders_and_decoders = 4 * (2 if lazy else 4) * largest // 2
    assert now > encoders_and_decoders
    assert peak < encoders_and_decoders + 2 * 530_000 * 2 + 2 * largest
    assert isinstance(loaded.model, CompleteModel)


def _mapped_bytes(file: Path) -> int:
    """Of a file that is mapped into memory: its pages are the system's, and take no memory."""
    return file.stat().st_size


@pytest.mark.parametrize("kind", DEVICES)
def test_it_is_loaded_onto_a_cuda_device(tmp_path: Path, kind: str) -> None:
    with cuda_device(kind):
        _check_on_cuda(
            model_loader.load(_settings(tmp_path).model_copy(update={"device": "cuda:0"}))
        )


def _check_on_cuda(loaded: LoadedModel) -> None:
    assert {tensor.device.type for _, tensor in loaded.weights()} == {"cuda"}
    assert loaded.dtype is torch.float32  # the demo's own
    with torch.inference_mode():
        logits = loaded.model.language_model(torch.tensor([_IDS], device="cuda:0"))
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", COMPLETE)
def test_a_known_set_is_loaded_from_a_cache_under_its_name(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = COMPLETE[name]
    write_family(tmp_path / "hub", family)
    settings = settings_at(tmp_path, model_id=family.model, transcoder_set=family.transcoder_set)
    fit_set(model_loader.load(settings), tmp_path)
    with caplog.at_level(logging.INFO):
        loaded = model_loader.load(settings)
    assert loaded.entry in REGISTRY
    repository = family.transcoder_set.rpartition("/")[0].rpartition("/")[0]
    assert loaded.revisions == (
        f"{family.model}@{commit_of(family.model)}",
        f"{family.transcoder_set}@{commit_of(repository)}",
    )
    assert f"(from {', '.join(loaded.revisions)}) on cpu" in caplog.text
    assert (loaded.n_context, loaded.name) == (128, family.model)
    fitness.check_weights(loaded)
    fitness.check_model(loaded)


def test_the_list_of_what_can_be_served_has_them(tmp_path: Path) -> None:
    family = COMPLETE["Qwen 3 1.7B, complete 8x"]
    write_family(tmp_path / "hub", family)
    done = run_command("list", HF_HOME=str(tmp_path), IMAGE_WEIGHTS="none")
    rows = [line for line in done.stdout.splitlines() if "Llama-Scope-2" in line]
    ends = [row.split()[-5:] for row in rows]
    assert ends[0] == ["20", "GB", "12", "GB", "HF_HOME"]
    assert ends[1] == ["GB", "35", "GB", "model:", "HF_HOME"]


class TestSettings:
    def test_neuronpedia_s_arguments_are_taken_with_hyphens_and_underscores(self) -> None:
        arguments = [
            *("--attribution-engine", "lm-saes-crm", "--model_id", "Qwen/Qwen3-1.7B"),
            *("--sae_repo", "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B"),
            *("--sae-expansion", "32x", "--sae_topk", "k64"),
            *("--np_transcoder_source_set", "t", "--np-lorsa-source-set", "l"),
        ]
        entry = select(read_settings(**start._parse_arguments(arguments))).entry
        assert entry.transcoder_set == "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B/32x/k64"
        assert (entry.source_set, entry.lorsa_source_set) == ("t", "l")

    def test_the_three_parts_name_a_set_together(self, tmp_path: Path) -> None:
        _demo_set(tmp_path)
        settings = demo_settings(
            model_id="demo", sae_repo=str(tmp_path / "set"), sae_expansion="2x", sae_topk="k4"
        )
        assert model_loader.load(settings).is_complete

    def test_parts_that_are_left_out_are_neuronpedia_s(self) -> None:
        settings = demo_settings(model_id="Qwen/Qwen3-1.7B", sae_topk="k128")
        name = "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B/8x/k128"
        assert select(settings).entry.transcoder_set == name

    def test_a_revision_of_the_repository_is_the_set_s(self) -> None:
        settings = demo_settings(model_id="Qwen/Qwen3-1.7B", sae_repo="a/b@v1", sae_topk="k9")
        assert select(settings).entry.transcoder_set == "a/b/8x/k9@v1"

    def test_two_names_for_the_set_must_agree(self) -> None:
        name = "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B/8x/k64"
        settings = demo_settings(transcoder_set=name, sae_topk="k64")
        assert select(settings).entry.transcoder_set == name
        with pytest.raises(SettingsError, match="TRANSCODER_SET='gemma', and SAE_REPO"):
            select(demo_settings(transcoder_set="gemma", sae_topk="k64"))

    def test_without_a_set_the_engine_chooses_the_model_s(self) -> None:
        entry = select(demo_settings(attribution_engine="lm-saes-crm")).entry
        assert entry == DEMO_CRM
        settings = demo_settings(model_id="qwen3-1.7b", attribution_engine="lm-saes-crm")
        entry = select(settings).entry
        assert entry.transcoder_set == "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B/8x/k64"
        with pytest.raises(SettingsError, match="for ATTRIBUTION_ENGINE='lm-saes-crm'"):
            select(demo_settings(model_id="gemma-2-2b", attribution_engine="lm-saes-crm"))

    def test_an_engine_that_is_not_a_known_set_s_is_refused_before_files_are_looked_for(
        self,
    ) -> None:
        with pytest.raises(SettingsError, match="ATTRIBUTION_ENGINE='lm-saes-crm'"):
            select(demo_settings(transcoder_set="gemma", attribution_engine="lm-saes-crm"))

    def test_an_underscore_is_a_hyphen(self) -> None:
        assert demo_settings(attribution_engine="lm_saes_crm").attribution_engine == "lm-saes-crm"

    def test_neuronpedia_s_names_are_those_of_the_settings(self) -> None:
        settings = demo_settings(
            model_id="qwen3-1.7b",
            attribution_engine="lm-saes-crm",
            np_model_id="qwen",
            np_transcoder_source_set="transcoders-8x",
            np_lorsa_source_set="lorsas-8x",
        )
        entry = select(settings).entry
        assert (entry.neuronpedia_id, entry.source_set) == ("qwen", "transcoders-8x")
        assert entry.lorsa_source_set == "lorsas-8x"
        assert entry.source_urls[:2] == (
            "https://neuronpedia.org/qwen/transcoders-8x",
            "https://neuronpedia.org/qwen/lorsas-8x",
        )


def test_an_unset_value_is_read_as_json_gives_it(tmp_path: Path) -> None:
    """A `null` in a file, which a writer leaves for a key that it didn't set."""
    _demo_set(tmp_path)
    file = module_folder(tmp_path / "set", "lorsa", 0) / "config.json"
    keys = json.loads(file.read_text()) | {"attn_scale": None}
    file.write_text(json.dumps(keys))
    settings = demo_settings(model_id="demo", transcoder_set=str(tmp_path / "set/2x/k4"))
    assert model_loader.load(settings).model.lorsas[0].attn_scale == 8**0.5
