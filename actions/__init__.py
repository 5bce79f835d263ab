"""What the worker does: one file an action, each a request and the loaded model to a response.

`answer` is the whole of it for a door: raw input in, a response or a graph document out.
"""

import logging
import threading
import traceback
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

import schemas
from actions import forward_pass, generate_graph, parse_chat_prompt, steer
from actions.job import Job
from delivery import Spooled
from errors import Internal, OutOfMemory, WorkerError
from model_loader import LoadedModel, get_model
from settings import Settings

logger = logging.getLogger(__name__)

Response = BaseModel | Spooled

ACTIONS: dict[type[schemas.Request], Callable[[Any, LoadedModel, Job], Response]] = {
    schemas.GenerateGraphRequest: generate_graph.run,
    schemas.SteerRequest: steer.run,
    schemas.ForwardPassRequest: forward_pass.run,
    schemas.ParseChatPromptRequest: parse_chat_prompt.run,
}


def answer(body: object, settings: Settings, cancelled: threading.Event | None = None) -> Response:
    """Do what a request asks for, on the process's one model.

    Args:
        body: the `input` of a Runpod job, or the body of an HTTP request with its action.
        cancelled: once set, the work stops at its next batch or token.

    Raises:
        WorkerError: the request can't be answered; nothing else is ever raised. The model is as
            it was before.
    """
    try:
        request = schemas.parse_request(body)
        job = Job(settings, request.deadline, cancelled or threading.Event())
        job.check()
        return ACTIONS[type(request)](request, get_model(settings), job)
    except WorkerError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise OutOfMemory(
                "the device has no room for this job; lower batch_size or max_feature_nodes, or "
                "shorten the prompt"
            ) from None
        # The message may quote the prompt or a signed URL, so only the place is logged.
        place = "".join(traceback.format_tb(error.__traceback__))
        logger.error("%s while answering a request\n%s", type(error).__name__, place)
        raise Internal(
            f"an unexpected {type(error).__name__} stopped the job; the worker's log has its place"
        ) from None


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError)
