"""A worker starts without what it never uses, and whoever uses that gets the real thing."""

import contextlib
import importlib.util
import json
import sys

import pytest

from serving import lean_imports as lean
from serving.lean_imports import lean_imports
from tests.support.demo_worker import ask, comparable
from tests.support.programs import output_of
from tests.support.sdk_jobs import FORWARD, GRAPH, PARSE, STEER

JOBS = [GRAPH, STEER, FORWARD, PARSE]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `heavy`, deferred, that says in a file when it is executed."""
    folder = tmp_path / "heavy"
    folder.mkdir()
    trace = tmp_path / "trace"
    say = f"open({str(trace)!r}, 'a').write(__name__ + ' ')\n"
    (folder / "__init__.py").write_text(say + "answer = 42\n")
    (folder / "part.py").write_text(
        say + "class Thing:\n    size = 3\ndef double(x): return 2 * x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(lean, "DEFERRED", frozenset({"heavy"}))
    yield lambda: trace.read_text().split() if trace.exists() else []
    for name in [n for n in sys.modules if n.partition(".")[0] == "heavy"]:
        del sys.modules[name]


def test_what_is_deferred_is_executed_on_first_use_only(package):
    with lean_imports():
        import heavy  # type: ignore[import-not-found]
        from heavy.part import Thing, double  # type: ignore[import-not-found]

        assert importlib.util.find_spec("heavy") is not None
    assert package() == []
    assert double(4) == 8
    assert package() == ["heavy", "heavy.part"]
    assert heavy.answer == 42
    assert Thing.size == 3
    assert Thing().size == 3


def test_stand_ins_are_classes_where_one_is_asked_for(package):
    with lean_imports():
        from heavy.part import Thing
    from heavy.part import Thing as RealThing

    class Derived(Thing):
        pass

    def annotated(thing: Thing | None, other: "int | Thing" = 0) -> None: ...

    assert Derived.__mro__[1] is RealThing
    assert isinstance(RealThing(), Thing)
    assert not isinstance(3, Thing)
    assert issubclass(Derived, Thing)


def test_what_is_used_while_imports_are_lean_is_imported_then(package):
    with lean_imports():
        from heavy.part import Thing

        class Derived(Thing):
            pass

        from heavy.part import Thing as RealThing

        assert Derived.__mro__[1] is RealThing
        assert isinstance(RealThing, type)
    assert package() == ["heavy", "heavy.part"]


def test_afterwards_imports_find_the_real_module_and_nothing_is_left(package):
    before = list(sys.meta_path)
    with contextlib.suppress(ZeroDivisionError), lean_imports():
        import heavy.part

        raise ZeroDivisionError
    assert sys.meta_path == before
    assert "heavy" not in sys.modules
    assert "heavy.part" not in sys.modules
    import heavy.part

    assert heavy.part.double(1) == 2
    assert heavy.answer == 42


def run_program(program: str) -> list[object]:
    """What a program prints in a fresh process, a JSON value a line."""
    lines = output_of(program).splitlines()
    return [json.loads(line.removeprefix("JSON ")) for line in lines if line.startswith("JSON ")]


# What transformers offers, and where it would import it from.
OFFERED = """
import transformers, transformers.models
print(json.dumps([sorted(m._class_to_module.items()) for m in (transformers, transformers.models)]))
"""

A_LEAN_WORKER = f"""
import gc, json, sys
import handler
from serving.lean_imports import DEFERRED, _StandIn
from serving.startup import import_libraries
from settings import Settings
settings = Settings(_env_file=None, device="cpu", hf_home="/as/settings/say")
import_libraries(settings, "serving.runpod_loop")
import huggingface_hub.constants
print(json.dumps(huggingface_hub.constants.HF_HOME))
from tests.support.demo_worker import ask
jobs = json.loads({json.dumps(json.dumps(JOBS))})
print(json.dumps([ask(job) for job in jobs]))
absent = DEFERRED | {{"torch._dynamo", "wandb", "matplotlib", "nnsight", "cpuinfo"}}
absent |= {{"IPython", "pytest"}}
print(json.dumps(sorted(absent & sys.modules.keys())))
print(json.dumps([n for n, m in sys.modules.items() if type(m) is _StandIn]))
print(json.dumps(gc.isenabled()))
{OFFERED}
from transformer_lens.utilities import hf_utils
rows = hf_utils.Dataset.from_dict({{"text": ["a", "b"]}})
import datasets
print(json.dumps([isinstance(rows, datasets.Dataset), isinstance(rows, hf_utils.Dataset)]))
import pandas, transformer_lens.patching
print(json.dumps(transformer_lens.patching.pd.DataFrame({{"a": [1]}}).equals(
    pandas.DataFrame({{"a": [1]}}))))
import torch, transformers
from loading.registry import DEMO
from model_loader import get_model
from tests.support.demo_worker import demo_settings
hugging_face = transformers.AutoModelForCausalLM.from_pretrained(DEMO.model)
loaded = get_model(demo_settings())
ids = torch.tensor([[1, 5, 9, 700]])
with torch.no_grad():
    difference = (hugging_face(ids).logits - loaded.model(ids)).abs().max()
print(json.dumps([float(difference), type(transformers.AutoModelForCausalLM) is type]))
"""

THE_LIBRARIES_ALONE = f"""
import json, sys
import attribution
print(json.dumps([type(f).__name__ for f in sys.meta_path if "serving" in type(f).__module__]))
print(json.dumps([m for m in ("serving.lean_imports", "datasets") if m in sys.modules]))
{OFFERED}
"""


@pytest.fixture(scope="module")
def worker():
    program = A_LEAN_WORKER.replace("print(json", "print('JSON', json")
    return run_program(program)


@pytest.fixture(scope="module")
def alone():
    program = THE_LIBRARIES_ALONE.replace("print(json", "print('JSON', json")
    return run_program(program)


def test_a_lean_worker_answers_every_action_as_any_process_does(worker):
    assert [comparable(output) for output in worker[1]] == [comparable(ask(job)) for job in JOBS]


def test_the_hub_s_client_keeps_its_files_where_the_settings_say(worker):
    assert worker[0] == "/as/settings/say"


def test_after_its_jobs_nothing_deferred_is_imported_and_no_stand_in_is_found(worker):
    assert worker[2] == []
    assert worker[3] == []
    assert worker[4] is True  # garbage is collected again


def test_whoever_uses_what_was_deferred_gets_the_real_thing(worker):
    assert worker[6] == [True, True]
    assert worker[7] is True
    difference, is_a_class = worker[8]
    assert difference < 1e-4
    assert is_a_class


def test_transformers_offers_what_it_always_does(worker, alone):
    assert worker[5] == alone[2]


def test_transformers_reads_the_files_of_its_models_once():
    program = """
import json, os
from serving.lean_imports import import_lean
import_lean("transformers.models")
import transformers
from transformers.utils import import_utils
models = os.path.dirname(transformers.models.__file__)
folders = sum("__pycache__" not in path for path, _, _ in os.walk(models))
scan = import_utils.create_import_structure_from_path
print('JSON', json.dumps([scan.cache_info().misses, folders, scan.__module__]))
"""
    [[scanned, folders, module]] = run_program(program)
    assert scanned == folders
    assert module == "transformers.utils.import_utils"  # transformers' own again


def test_the_mathematics_alone_leaves_the_process_s_imports_as_they_are(alone):
    assert alone[0] == []
    assert alone[1] == ["datasets"]
