"""Whether this worker is fit for jobs: its device, its weights, a run of the model, its disk.

The device is checked before the model is loaded, the rest after that. On Runpod the SDK runs these
checks before it takes the first job, and then its own (memory, disk, network, GPU). A check that
raises ends the process with code 1: the SDK logs the sentence and tells Runpod, which replaces the
worker. The HTTP door runs the same checks before it listens. A local run of one job runs none.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable

from delivery.spooling import MEMORY_LIMIT_BYTES, spool
from errors import NotFinite
from loading.loaded_model import LoadedModel
from model_loader import get_model
from prompting import chat_prompt, prompts
from prompting.chat_template import render_messages
from prompting.gemma_3_chat import is_gemma_3_it
from settings import Settings

logger = logging.getLogger(__name__)

# The largest graphs have come to 1.7 GB. TMPDIR moves them to another disk.
SPOOL_BYTES = 2_000_000_000

_TEXT = "1 2 3"
# For complete sets: the check asks how much a set explains, and words show that better than digits.
_SENTENCE = "The capital of France is"


class UnfitError(Exception):
    """The worker can't do its work; the message says what is wrong and what to do."""


def checks(settings: Settings) -> list[Callable[[], None]]:
    """The checks of a worker with a loaded model. The SDK tells Runpod the name of one that fails.

    Each raises UnfitError when the worker is not fit for jobs.
    """
    named: dict[str, Callable[[], None]] = {
        "weights": lambda: check_weights(get_model(settings)),
        "self_test": lambda: check_model(get_model(settings)),
        "disk": check_disk,
    }
    return [_in_one_sentence(name, check) for name, check in named.items()]


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

    for name, weight in loaded.weights():
        if weight.is_meta:
            raise UnfitError(f"{name} was not loaded: the model's files lack it; download it anew")
        # Infinite thresholds are how some transcoders switch features off.
        if weight.detach().sum(dtype=torch.float32).isnan():
            raise UnfitError(
                f"{name} of {loaded.entry.label} holds NaN: its file is damaged; delete it from "
                "HF_HOME, or from its directory, to have it downloaded anew"
            )


def check_model(loaded: LoadedModel) -> None:
    """Raise UnfitError when a small graph or steer has numbers that can't be right.

    The check reads each transcoder's encoder and decoder, lazy ones from their files.
    """
    from serving import self_test
    from serving.consistency import InconsistentError, UnexplainedError

    started = time.perf_counter()
    try:
        self_test.run(loaded.model, _tokens(loaded))
        # Compiles the chat template, for which the first job with messages would wait.
        chat_prompt.parse(_TEXT, loaded.tokenizer, loaded.name)
    except NotFinite as error:
        raise UnfitError(f"of {loaded.entry.label}, {error.sentence}") from error
    except UnexplainedError as error:
        raise UnfitError(
            f"{loaded.entry.transcoder_label} doesn't explain the model: {error}; is it a set "
            "of this model, and are its weights folded? See MODEL_ID and TRANSCODER_SET"
        ) from error
    except InconsistentError as error:
        raise UnfitError(
            f"{loaded.entry.label} is not computed right: {error}; the device or the weights are "
            "damaged, have the worker replaced"
        ) from error
    logger.info("checked a small graph and a steer in %.1f s", time.perf_counter() - started)


def _tokens(loaded: LoadedModel) -> list[int]:
    """A short text's tokens: two at least, and one less than the model has room for."""
    text = _SENTENCE if loaded.is_complete else _TEXT
    if is_gemma_3_it(loaded.name):  # which attribution takes as a chat only
        text = render_messages([{"role": "user", "content": _TEXT}], loaded.tokenizer)
    ids = prompts.tokenize(
        text, loaded.tokenizer, loaded.name, leading_token=not loaded.is_complete
    )
    if len(ids) < 2:  # a tokenizer that knows nothing of the text
        ids = (ids or [0]) * 2
    return ids[: max(2, loaded.n_context - 1)]


def check_disk() -> None:
    """Raise UnfitError unless the temporary directory has room for a graph, and takes one."""
    directory = tempfile.gettempdir()
    free = shutil.disk_usage(directory).free
    if free < SPOOL_BYTES:
        raise UnfitError(
            f"{directory} has {free / 1e9:.1f} GB free, graphs on their way to a store can take "
            f"{SPOOL_BYTES / 1e9:.1f} GB; give the worker more disk, or set TMPDIR to a directory "
            "with room"
        )
    # A quota or a read-only disk shows only when something is written.
    piece = bytes(1_000_000)
    with spool([piece] * (MEMORY_LIMIT_BYTES // len(piece) + 1), compress=False):
        pass


def _in_one_sentence(name: str, check: Callable[[], None]) -> Callable[[], None]:
    """The check under a name of its own, with whatever it raises as an UnfitError of one line."""

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

    run.__name__ = name
    return run
