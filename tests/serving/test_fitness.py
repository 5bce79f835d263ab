"""What a worker is checked for before it takes jobs, and how an unfit one ends."""

import os
import re
import resource
import shutil
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import model_loader
from loading.registry import DEMO
from serving import fitness
from serving.fitness import UnfitError
from tests.support.control_plane import ControlPlane, running_worker
from tests.support.demo_worker import FORWARD, demo_settings, settings_at
from tests.support.polling import LONGEST_S
from tests.support.programs import ROOT, run
from tests.support.tiny_families import FAMILIES, write_family


@pytest.fixture
def loaded():
    """The demo model, a copy that a test may spoil."""
    return model_loader.load(demo_settings())


@pytest.mark.parametrize("engine", ["transformerlens", "nnsight"])
def test_a_sound_worker_passes(engine, monkeypatch):
    monkeypatch.setattr(fitness, "SPOOL_BYTES", 1_000_000)
    loaded = model_loader.load(demo_settings(model_engine=engine))
    fitness.check_device(demo_settings())
    fitness.check_weights(loaded)
    fitness.check_model(loaded)
    fitness.check_disk()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"device": "cuda:0"}, "DEVICE is cuda:0"),
        ({"device": None, "runpod_gpu_count": 2}, "Runpod gave the worker 2"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_without_the_gpu_that_was_expected_is_unfit(chosen, words):
    settings = demo_settings().model_copy(update=chosen)
    with pytest.raises(UnfitError, match=f"{words}.*set DEVICE=cpu"):
        fitness.check_device(settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_without_its_gpu_ends_before_it_loads_the_model(tmp_path):
    environment = {**os.environ, "RUNPOD_GPU_COUNT": "1", "MODEL_ID": "demo", "DEVICE": ""}
    done = run(ROOT / "handler.py", cwd=tmp_path, env=environment, timeout=LONGEST_S)
    assert done.returncode == 1
    assert "start: a GPU was expected (Runpod gave the worker 1 of them)" in done.stderr
    assert "loaded" not in done.stderr


@pytest.mark.parametrize(
    "chosen",
    [{"device": "cpu", "runpod_gpu_count": 1}, {"device": None, "runpod_gpu_count": 0}],
)
def test_a_worker_without_a_gpu_where_that_was_asked_for_is_fit(chosen):
    fitness.check_device(demo_settings().model_copy(update=chosen))


@pytest.mark.parametrize("name", ["blocks.3.attn.W_Q", "transcoders.1.W_enc"])
def test_weights_that_hold_nan_are_named(loaded, name):
    [full] = [n for n, _ in loaded.model.named_parameters() if n.endswith(name)]
    with torch.no_grad():
        loaded.model.get_parameter(full)[0, 0] = torch.nan
    with pytest.raises(UnfitError, match=re.escape(full)):
        fitness.check_weights(loaded)


def test_weights_that_were_left_out_are_named(loaded):
    norm = loaded.model.blocks[2].ln1
    norm.w = torch.nn.Parameter(norm.w.to("meta"))
    with pytest.raises(UnfitError, match=r"blocks\.2\.ln1\.w was not loaded"):
        fitness.check_weights(loaded)


def test_a_threshold_of_infinity_is_no_fault(loaded):
    with torch.no_grad():
        loaded.model.transcoders[0].activation_function.threshold[3] = torch.inf
    fitness.check_weights(loaded)
    fitness.check_model(loaded)


def test_a_gemma_3_chat_model_is_asked_in_a_chat(tmp_path):
    family = FAMILIES["Gemma 3 chat, affine in a folder"]
    write_family(tmp_path / "hub", family)
    settings = settings_at(
        tmp_path,
        model_id=family.model,
        transcoder_set=family.transcoder_set,
        model_dtype="bfloat16",
    )
    fitness.check_model(model_loader.load(settings))


@pytest.mark.parametrize("engine", ["transformerlens", "nnsight"])
@pytest.mark.parametrize("n_context", [2, 4])
def test_a_model_with_room_for_a_few_tokens_passes(engine, n_context):
    loaded = model_loader.load(demo_settings(model_engine=engine))
    loaded.model.cfg.n_ctx = n_context
    fitness.check_model(loaded)


def test_a_tokenizer_that_has_no_digits_passes(loaded):
    letters = Tokenizer(models.BPE({"<bos>": 0, "a": 1}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<bos>")
    assert tokenizer.encode(fitness._TEXT, add_special_tokens=False) == []
    loaded.model.tokenizer = tokenizer
    fitness.check_model(replace(loaded, tokenizer=tokenizer))


def test_a_model_that_overflows_in_its_dtype_is_unfit_and_the_dtype_named():
    loaded = model_loader.load(demo_settings(model_dtype="float16"))
    with torch.no_grad():
        weight = loaded.model.blocks[1].mlp.old_mlp.W_out
        weight.copy_(weight.sign() * 6e4)
    with pytest.raises(UnfitError, match=r"of demo, .*float16.*MODEL_DTYPE=bfloat16"):
        fitness.check_model(loaded)


def test_logits_that_are_not_finite_are_unfit(loaded):
    loaded.model.blocks[2].mlp.register_forward_hook(lambda _mlp, _in, output: output * torch.inf)
    with pytest.raises(UnfitError, match="not finite"):
        fitness.check_model(loaded)


def test_something_left_over_by_the_first_run_is_unfit(loaded):
    generated = []

    def drift(_module, _inputs, output):
        """From the first generated token on, every pass goes another way."""
        generated.extend([output] * (output.shape[1] == 1))
        return output + 0.5 * output.roll(1, -1) if generated else output

    loaded.model.blocks[0].mlp.register_forward_hook(drift)
    with pytest.raises(UnfitError, match="predicts otherwise on its second run"):
        fitness.check_model(loaded)


def test_a_pass_that_goes_another_way_each_time_is_unfit(loaded):
    runs = []

    def drift(_module, _inputs, output):
        runs.append(None)
        return output + 0.1 * len(runs) * output.roll(1, -1)

    loaded.model.blocks[0].mlp.register_forward_hook(drift)
    with pytest.raises(UnfitError, match="not computed right"):
        fitness.check_model(loaded)


def test_the_last_bit_of_a_logit_in_bfloat16_is_no_fault(loaded):
    last_bit = torch.finfo(torch.bfloat16).eps * 32
    runs = []

    def rounded_the_other_way(_module, _inputs, logits):
        runs.append(None)
        logits = logits.clone()
        logits[..., 7] += last_bit * (len(runs) > 1)
        return logits

    loaded.model.unembed.register_forward_hook(rounded_the_other_way)
    fitness.check_model(loaded)


def test_a_disk_without_room_for_a_graph_is_unfit(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(fitness, "SPOOL_BYTES", shutil.disk_usage(tmp_path).total + 1)
    with pytest.raises(UnfitError, match=re.escape(str(tmp_path)) + ".*set TMPDIR"):
        fitness.check_disk()


def assert_ends_before_any_job(plane, worker, check, words):
    assert worker.process.wait(LONGEST_S) == 1
    assert plane.requests["job-take"] == 0
    assert len(plane.untaken()) == 1
    [line] = [line for line in worker.log().splitlines() if "Fitness check failed" in line]
    assert f"Fitness check failed: {check} | UnfitError: " in line
    assert words in line
    # What Runpod is told.
    assert [(ping["status"], ping["check"]) for ping in plane.pings] == [("unhealthy", check)]
    assert words in plane.pings[0]["reason"]
    assert "Traceback" not in worker.log()


def test_a_worker_whose_weights_are_damaged_ends_before_it_takes_a_job(tmp_path, demo_with_nan):
    names = {"MODEL_ID": str(demo_with_nan), "TRANSCODER_SET": DEMO.transcoder_set}
    with ControlPlane() as plane, running_worker(plane, tmp_path, **names) as worker:
        plane.submit(FORWARD)
        assert_ends_before_any_job(plane, worker, "weights", "blocks.1.mlp.old_mlp.W_in")


def limit_files_and_run(limit):
    """A program that runs handler.py with no room in any file beyond a limit, as on a full disk."""
    return (
        "import resource, runpy\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {resource.RLIM_INFINITY}))\n"
        "runpy.run_path('handler.py', run_name='__main__')\n"
    )


def test_a_worker_whose_disk_takes_no_graph_ends_before_it_takes_a_job(tmp_path):
    program = limit_files_and_run(8_000_000)
    with ControlPlane() as plane, running_worker(plane, tmp_path, "-c", program) as worker:
        plane.submit(FORWARD)
        assert_ends_before_any_job(plane, worker, "disk", "File too large")
