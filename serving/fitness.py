"""Whether this worker is fit for jobs: its device, its weights, a run of the model, its disk.

The device is checked before the model is loaded, the rest once it is. On Runpod the SDK runs what
is registered here, before the first job is taken, and not in a local run; its own checks (memory,
disk, network, GPU) follow. A check that raises ends the process with code 1: the SDK logs the
sentence, tells Runpod, and Runpod replaces the worker. The HTTP door runs the same checks before it
listens.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from delivery.spooling import MEMORY_LIMIT_BYTES, spool
from errors import NotFinite
from model_loader import LoadedModel, get_model
from prompting import prompts
from prompting.chat_template import render_messages
from prompting.gemma_3_chat import is_gemma_3_it
from settings import Settings

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# The largest graphs have come to 1.7 GB. TMPDIR moves them to another disk.
SPOOL_BYTES = 2_000_000_000

_TEXT = "1 2 3"
_SMALLEST = 1e-6  # less likely tokens are compared as if they had this probability


class UnfitError(Exception):
    """The worker can't do its work; the message says what is wrong and what to do."""


def register(settings: Settings) -> None:
    """Have the SDK check the worker before it takes jobs."""
    import runpod

    for check in _checks(settings):
        runpod.serverless.register_fitness_check(check)


def check(settings: Settings) -> None:
    """Check a worker that the SDK doesn't, before it takes requests.

    Raises:
        UnfitError: it is not fit for them.
    """
    for fit in _checks(settings):
        fit()


def _checks(settings: Settings) -> list[Callable[[], None]]:
    """What both doors check once the model is loaded."""

    def weights() -> None:
        check_weights(get_model(settings))

    def self_test() -> None:
        check_model(get_model(settings))

    def disk() -> None:
        check_disk()

    return [_in_one_sentence(check) for check in (weights, self_test, disk)]


def check_device(settings: Settings) -> None:
    """Raise UnfitError when a GPU was expected and torch finds none.

    To be called before the model is loaded, which in float32 may be more than the memory takes.
    """
    import torch

    if settings.device is not None:
        expected = settings.device.startswith("cuda")
        why = f"DEVICE is {settings.device}"
    else:
        expected = bool(settings.runpod_gpu_count)
        why = f"Runpod gave the worker {settings.runpod_gpu_count} of them"
    if expected and not torch.cuda.is_available():
        build = torch.version.cuda
        remedy = f"choose hosts with CUDA {build} or newer" if build else "install a CUDA build"
        raise UnfitError(
            f"a GPU was expected ({why}), and torch {torch.__version__} finds none; {remedy}, "
            "or set DEVICE=cpu"
        )


def check_weights(loaded: LoadedModel) -> None:
    """Raise UnfitError when a weight of model or transcoders was left out or holds NaN."""
    import torch

    for name, weight in loaded.model.named_parameters():
        if weight.is_meta:
            raise UnfitError(f"{name} was not loaded: the model's files lack it; download it anew")
        # Infinite thresholds are how some transcoders switch features off.
        if weight.detach().sum(dtype=torch.float32).isnan():
            raise UnfitError(
                f"{name} of {loaded.entry.label} holds NaN: its file is damaged; delete it from "
                "HF_HOME, or from its directory, to have it downloaded anew"
            )


def check_model(loaded: LoadedModel) -> None:
    """Run the model, attribute and steer a prompt, and run it again.

    That reads each transcoder's encoder and decoder, lazy ones from their files.

    Raises:
        UnfitError: numbers are not finite, disagree with each other or with float32, or a second
            run predicts other tokens than the first.
    """
    import steering
    from attribution.salient_logits import probabilities_of
    from serving import self_test

    ids = _tokens(loaded)
    try:
        before = probabilities_of(steering.next_token_logits(loaded.model, ids))
        started = time.perf_counter()
        self_test.run(loaded.model, ids)
        took = time.perf_counter() - started
        logger.info("checked a small graph and a steer in %.1f s", took)
        after = probabilities_of(steering.next_token_logits(loaded.model, ids))
    except NotFinite as error:
        raise UnfitError(f"of {loaded.entry.label}, {error.sentence}") from error
    except self_test.InconsistentError as error:
        raise UnfitError(
            f"{loaded.entry.label} is not computed right: {error}; the device or the weights are "
            "damaged, have the worker replaced"
        ) from error
    change = float((_logs(after) - _logs(before)).abs().max())
    if not change <= self_test.ROUNDING:
        raise UnfitError(
            f"{loaded.entry.label} predicts otherwise on its second run than on its first (log-"
            f"probabilities change by up to {change:.2g}): the device computes wrong, or something "
            "of the first run is left over; have the worker replaced"
        )


def _tokens(loaded: LoadedModel) -> list[int]:
    """A short text's tokens: two at least, and one less than the model has room for."""
    ids = prompts.tokenize(_text(loaded), loaded.tokenizer, loaded.name)
    if len(ids) == 1:  # a tokenizer that knows nothing of the text
        ids = ids * 2
    return ids[: max(2, loaded.n_context - 1)]


def _text(loaded: LoadedModel) -> str:
    if is_gemma_3_it(loaded.name):  # which attribution takes as a chat only
        return render_messages([{"role": "user", "content": _TEXT}], loaded.tokenizer)
    return _TEXT


def check_disk(needed_bytes: int = SPOOL_BYTES) -> None:
    """Raise UnfitError unless the directory of temporary files has room for a graph, and takes one.

    Args:
        needed_bytes: what has to be free.
    """
    directory = tempfile.gettempdir()
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise UnfitError(
            f"{directory} has {free / 1e9:.1f} GB free, graphs on their way to a store can take "
            f"{needed_bytes / 1e9:.1f} GB; give the worker more disk, or set TMPDIR to a directory "
            "with room"
        )
    # A quota or a read-only disk shows only when something is written.
    piece = bytes(1_000_000)
    with spool([piece] * (MEMORY_LIMIT_BYTES // len(piece) + 1), compress=False):
        pass


def _logs(probabilities: "torch.Tensor") -> "torch.Tensor":
    return probabilities.clamp_min(_SMALLEST).log()


def _in_one_sentence(check: Callable[[], Any]) -> Callable[[], None]:
    """The check, with whatever it raises as an UnfitError of one line under the check's name."""

    def run() -> None:
        try:
            check()
        except UnfitError:
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UnfitError(
                f"{type(error).__name__} ({reason}); Runpod replaces the worker, and if that does "
                "not help, the disk, the device or the weights need a look"
            ) from error

    run.__name__ = check.__name__
    return run
