"""The forward passes of a replacement model, by its engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from attribution.complete.modules import CompleteModel
from errors import NotFinite
from steering.engine import Passes


def passes_of(model: Any) -> Passes:
    """The forward passes of a replacement model, circuit-tracer's or a complete one."""
    # Each engine's library takes seconds to import, and a worker has one engine.
    if isinstance(model, CompleteModel):
        from steering.complete import CompletePasses

        return CompletePasses(model)
    if model.backend == "nnsight":
        from steering.huggingface import HuggingFacePasses

        return HuggingFacePasses(model)
    from steering.transformerlens import TransformerLensPasses

    return TransformerLensPasses(model)


@contextmanager
def stoppable(model: Any, check: Callable[[], None]) -> Iterator[None]:
    """Have `check` called before each layer in all passes of a replacement model.

    What it raises ends the pass and comes out of the context. The passes may be anyone's:
    steering's, attribution's, or circuit-tracer's own.
    """
    raised: list[Exception] = []

    def check_and_note(*_: Any) -> None:
        try:
            check()
        except Exception as error:
            raised.append(error)
            raise

    with ExitStack() as handles:
        for block in passes_of(model).blocks():
            handles.enter_context(block.register_forward_pre_hook(check_and_note))
        try:
            yield
        except Exception:
            if not raised:
                raise
            # nnsight puts an exception of its own in the place, whose text is a traceback.
            raise raised[0] from None


def next_token_logits(model: Any, token_ids: Sequence[int]) -> Tensor:
    """Logits (d_vocab,) after the last token, to the bit those that a graph starts from.

    Raises:
        NotFinite: they are not all finite numbers.
    """
    passes = passes_of(model)
    with torch.inference_mode():
        logits = passes.plain_logits(passes.tokens([token_ids]))
        if not logits.isfinite().all():
            raise NotFinite.of("the model's logits after this prompt", model.cfg.dtype)
        return logits
