"""The demo's language model with random transcoders and Lorsas, behind the worker's own front."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import model_loader
from graphs.cache import GraphCache
from loading.loaded_model import LoadedModel
from settings import Settings
from tests.support.complete_sets import write_set
from tests.support.demo_worker import demo_settings

N_LAYERS, N_CTX = 4, 64


def complete_settings(directory: Path, **changed: Any) -> Settings:
    """Write a random set for the demo's language model, and return the settings that serve it."""
    name = write_set(directory / "set", N_LAYERS, d_model=96, n_ctx=N_CTX)
    return demo_settings(model_id="demo", transcoder_set=str(name), **changed)


@contextmanager
def serving_complete(directory: Path, **changed: Any) -> Iterator[tuple[Settings, LoadedModel]]:
    """Have the process's one model be this complete model meanwhile."""
    settings = complete_settings(directory, **changed)
    before = model_loader._loaded
    model_loader._loaded = model_loader.load(settings)
    try:
        yield settings, model_loader._loaded
    finally:
        model_loader._loaded = before


def forget_graphs(loaded: LoadedModel, max_bytes: int = 10**9) -> None:
    """Drop every attribution that the model has kept."""
    object.__setattr__(loaded, "graphs", GraphCache(max_bytes))


@contextmanager
def forbidding_runs(loaded: LoadedModel) -> Iterator[Callable[[], None]]:
    """Yield a function: from its call on, a run of the model fails the test."""
    handles = []

    def fail(*_: Any) -> None:
        raise AssertionError("the model ran")

    def forbid() -> None:
        block = loaded.model.language_model.blocks[0]
        handles.append(block.register_forward_pre_hook(fail))

    try:
        yield forbid
    finally:
        for handle in handles:
            handle.remove()
