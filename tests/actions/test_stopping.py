"""A job that nobody wants any more stops within a pass of the model, and leaves it as it was."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import model_loader
from attribution.complete.modules import CompleteModel, Lorsa, Transcoder
from attribution.transcoder_layer import TranscoderLayer
from errors import Cancelled, DeadlineExceeded
from graphs.cache import GraphCache
from loading.loaded_model import LoadedModel
from settings import Settings
from tests.support.complete_worker import complete_settings
from tests.support.demo_worker import ask, comparable, demo_settings, settings_at
from tests.support.tiny_families import FAMILIES, write_family

GEMMA = FAMILIES["Gemma 2, per layer"]
AT = {"layer": 1, "index": 7, "kind": "transcoder"}
STEERED = {**AT, "token_active_position": 3, "steer_position": 3, "delta": 2.0}
ACTIONS: dict[str, dict[str, Any]] = {
    "generate-graph": {"max_feature_nodes": 20, "slug_identifier": "test"},
    "steer": {
        "n_tokens": 2, "features": [STEERED, {**STEERED, "layer": 0}], "freeze_attention": True,
    },
    "forward-pass": {},
    "intervene": {
        "groups": {"a": [{**AT, "layer": layer, "position": 3} for layer in (0, 1)]},
        "experiments": [[{"group": "a", "value": 3}]],
    },
    "contrast": {},
}  # fmt: skip
PROMPTS = {
    "transformerlens": ("Michael Jordan joue au", "Michael Jordan juega al"),
    "complete": ("Michael Jordan joue au", "Michael Jordan juega al"),
    "nnsight": ("The capital of France is", "The"),
}

Asking = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", params=PROMPTS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Settings, LoadedModel]]:
    home, before = tmp_path_factory.mktemp("home"), model_loader._loaded
    if request.param == "transformerlens":
        settings = demo_settings()
    elif request.param == "complete":
        settings = complete_settings(home)
    else:
        write_family(home / "hub", GEMMA)
        settings = settings_at(
            home,
            model_id=GEMMA.model,
            transcoder_set=GEMMA.transcoder_set,
            model_engine="nnsight",
        )
    model_loader._loaded = loaded = model_loader.load(settings)
    yield request.param, settings, loaded
    model_loader._loaded = before


@pytest.fixture(params=ACTIONS)
def asking(request: pytest.FixtureRequest, served: tuple[str, Settings, LoadedModel]) -> Asking:
    """Asks for the action, never for what is kept of an earlier time."""
    engine, settings, loaded = served
    prompt, other = PROMPTS[engine]
    body = {"action": request.param, "prompt": prompt, **ACTIONS[request.param]}
    if request.param == "contrast":
        body["other_prompt"] = other

    def asked(cancelled: threading.Event | None = None, **fields: Any) -> dict[str, Any]:
        object.__setattr__(loaded, "graphs", GraphCache(10**9))
        return comparable(ask({**body, **fields}, settings, cancelled))

    return asked


def layers_of(model: Any) -> list[torch.nn.Module]:
    if isinstance(model, CompleteModel):
        model = model.language_model
    return list(model.blocks if hasattr(model, "blocks") else model._module.model.layers)


def hooks_of(model: Any) -> list[int]:
    return [
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for layer in layers_of(model)
        for module in layer.modules()
    ]


@contextmanager
def watching(model: Any, at_entry: Callable[[int], None]) -> Iterator[list[int]]:
    """Calls with the number of each entry into a layer; yields the layers that were run."""
    entered: list[int] = []
    run: list[int] = []

    def enter(number: int) -> None:
        entered.append(number)
        at_entry(len(entered))

    handles = []
    for number, layer in enumerate(layers_of(model)):
        handles += [
            layer.register_forward_pre_hook(lambda *_, n=number: enter(n)),
            layer.register_forward_hook(lambda *_, n=number: run.append(n)),
        ]
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


def test_in_whatever_layer_a_job_is_cancelled_no_further_one_is_run(
    asking: Asking, served: tuple[str, Settings, LoadedModel]
) -> None:
    loaded = served[2]
    before, hooks = asking(), hooks_of(loaded.model)
    with watching(loaded.model, lambda _: None) as run:
        asking()
    n_runs = len(run)
    assert n_runs >= len(layers_of(loaded.model))
    for last in range(1, n_runs + 1):
        cancelled = threading.Event()

        def cancel(number: int, last: int = last, event: threading.Event = cancelled) -> None:
            if number == last:
                event.set()

        with watching(loaded.model, cancel) as run, pytest.raises(Cancelled) as raised:
            asking(cancelled)
        assert str(raised.value) == "cancelled: the job was stopped before it was done"
        assert len(run) == last - 1
        assert not loaded.lock.locked()
        assert hooks_of(loaded.model) == hooks
    assert asking() == before


def test_at_its_deadline_a_job_runs_no_further_layer(
    asking: Asking, served: tuple[str, Settings, LoadedModel]
) -> None:
    loaded = served[2]
    before, deadline = asking(), time.time() + 0.3

    def wait(number: int) -> None:
        while number == 2 and time.time() <= deadline:
            time.sleep(0.02)

    with watching(loaded.model, wait) as run, pytest.raises(DeadlineExceeded):
        asking(deadline=deadline)
    assert len(run) <= 1
    assert asking() == before


@contextmanager
def watching_reads(
    engine: str, at_read: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Any]]:
    """Calls with the number of each read of features' weights; yields whose they were."""
    whose: list[Any] = []

    def note(owner: Any) -> None:
        whose.append(owner)
        at_read(len(whose))

    with monkeypatch.context() as patched:
        if engine == "complete":
            for kind, reads in ((Lorsa, "values"), (Transcoder, "before_gate")):
                own = getattr(kind, reads)

                def read(module: Any, *args: Any, own: Any = own) -> Any:
                    note(module.b_D.data_ptr())
                    return own(module, *args)

                patched.setattr(kind, reads, read)
        else:
            rows = TranscoderLayer.rows

            def read_rows(layer: TranscoderLayer, *args: Any) -> Any:
                note(layer.layer)
                return rows(layer, *args)

            patched.setattr(TranscoderLayer, "rows", read_rows)
        yield whose


def test_a_job_stops_before_it_reads_the_features_of_the_next_layer(
    asking: Asking, served: tuple[str, Settings, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _, loaded = served
    before = asking()
    with watching_reads(engine, lambda _: None, monkeypatch) as whose:
        asking()
    for last in range(1, len(whose)):
        if len(set(whose[last - 1 :])) == 1:  # all that follow are of the same layer
            break
        cancelled = threading.Event()

        def cancel(number: int, last: int = last, event: threading.Event = cancelled) -> None:
            if number == last:
                event.set()

        with watching_reads(engine, cancel, monkeypatch) as read, pytest.raises(Cancelled):
            asking(cancelled)
        assert set(read[last - 1 :]) == {whose[last - 1]}
        assert not loaded.lock.locked()
    assert asking() == before
