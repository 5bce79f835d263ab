"""The Runpod door: a job in, an output or an error out.

    python handler.py                  run test_input.json, print a summary
    python handler.py --rp_serve_api   serve Runpod's API locally

Importing this module loads no model and no torch.
"""

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import orjson
import runpod
from pydantic import BaseModel
from runpod.serverless.modules.rp_logger import RunPodLogger

import logs
from errors import OutputTooLarge, WorkerError
from settings import Settings, SettingsError, get_settings

if TYPE_CHECKING:
    from delivery import Spooled

logger = logging.getLogger(__name__)


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Answer one job. The work runs in a thread, so the SDK's event loop stays free.

    Returns:
        The output; or `{"error": "code: sentence"}`, which the SDK reports as a failed job.

    Raises:
        asyncio.CancelledError: the SDK stopped the job. The work has ended by then and the model
            is as it was.
    """
    settings = get_settings()
    cancelled = threading.Event()
    work = asyncio.create_task(asyncio.to_thread(_answer, job.get("input"), settings, cancelled))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait([work])
        raise


def _answer(body: object, settings: Settings, cancelled: threading.Event) -> dict[str, Any]:
    from actions import answer

    try:
        response = answer(body, settings, cancelled)
        if isinstance(response, BaseModel):
            return response.model_dump()
        with response:
            return _within_limit(response, settings.max_output_bytes)
    except WorkerError as error:
        logger.warning("job failed: %s", error.code)
        return {"error": str(error)}


def _within_limit(document: "Spooled", limit: int) -> dict[str, Any]:
    """A graph as a job's output. Runpod refuses larger ones, and the SDK only logs that."""
    if document.size > limit:
        raise OutputTooLarge(
            f"the graph has {document.size} bytes, a job's output may have {limit}; pass "
            "signed_url to have it uploaded, or keep less with lower thresholds"
        )
    graph: dict[str, Any] = orjson.loads(b"".join(document.chunks()))
    return graph


def main() -> None:
    """Load the model, then serve jobs until told to stop; without Runpod, run one and report."""
    try:
        settings = get_settings()
    except SettingsError as error:
        raise SystemExit(f"settings: {error}") from None
    logs.set_up(settings.log_level)
    import local_run
    from model_loader import ModelLoadError, get_model

    local = local_run.wanted(settings)
    # Locally the SDK would write the whole output out beside the summary.
    _set_sdk_log_level("WARN" if local else settings.log_level)
    started = time.perf_counter()
    try:
        get_model(settings)
    except (SettingsError, ModelLoadError) as error:
        raise SystemExit(f"start: {error}") from None
    if local:
        local_run.run(handler, loading_s=time.perf_counter() - started)
    else:
        runpod.serverless.start({"handler": handler})


def _set_sdk_log_level(level: str) -> None:
    """The SDK's own log lines. Its DEBUG is never used: it writes inputs and outputs out."""
    RunPodLogger().set_level({"DEBUG": "INFO", "WARNING": "WARN"}.get(level, level))


if __name__ == "__main__":
    main()
