"""The demo's own complete set, behind the worker's own front."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import model_loader
from settings import Settings
from tests.support.demo_worker import ask, demo_settings

TRACED = {"enable_qk_tracing": True, "max_n_logits": 5, "desired_logit_prob": 0.999}


@contextmanager
def serving_complete_demo() -> Iterator[Settings]:
    """Have the process's one model be the complete demo model meanwhile."""
    settings = demo_settings(model_id="demo", transcoder_set="demo-crm")
    before = model_loader._loaded
    model_loader._loaded = model_loader.load(settings)
    try:
        yield settings
    finally:
        model_loader._loaded = before


def complete_graph(prompt: str, settings: Settings, **changed: Any) -> dict[str, Any]:
    """The complete demo model's graph of a prompt, with QK tracing."""
    body = {"action": "generate-graph", "prompt": prompt, "slug_identifier": "complete"}
    return ask({**body, **TRACED, **changed}, settings)
