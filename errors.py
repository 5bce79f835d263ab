"""What can go wrong, one class a code.

    WorkerError
     ├── InvalidInput        a field of the request is wrong
     ├── UnknownAction       the request names an action that there isn't
     ├── ModelNotLoaded      the request names a model that isn't the loaded one
     ├── PromptTooLong       the prompt has more tokens than the limit
     ├── DeadlineExceeded    the job's deadline passed before it was done
     ├── OutputTooLarge      the output exceeds what the endpoint takes
     ├── UploadUrlRefused    the signed URL points where the worker must not go
     ├── UploadFailed        the store did not take the graph
     ├── OutOfMemory         the device has no room for the job
     ├── NotFinite           the model's numbers overflow on this job
     ├── Cancelled           the job was stopped by its caller
     └── Internal            a fault of the worker's own
          └── DeviceBroken   its device can't be used any more: the worker has to be replaced

`str(error)` is what a caller reads: the code, a colon, a sentence to act on. Nothing else of an
exception reaches a caller.
"""


class WorkerError(Exception):
    """A failure that is part of the interface.

    `code` is stable; `http_status` is what the HTTP door answers with it.
    """

    code = "internal"
    http_status = 500

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"


class InvalidInput(WorkerError):
    code = "invalid_input"
    http_status = 422


class UnknownAction(WorkerError):
    code = "unknown_action"
    http_status = 400


class ModelNotLoaded(WorkerError):
    code = "model_not_loaded"
    http_status = 400


class PromptTooLong(WorkerError):
    code = "prompt_too_long"
    http_status = 413


class DeadlineExceeded(WorkerError):
    code = "deadline_exceeded"
    http_status = 503


class OutputTooLarge(WorkerError):
    code = "output_too_large"
    http_status = 413


class UploadUrlRefused(WorkerError):
    code = "upload_url_refused"
    http_status = 400


class UploadFailed(WorkerError):
    code = "upload_failed"
    http_status = 502


class OutOfMemory(WorkerError):
    code = "out_of_memory"
    http_status = 503


class NotFinite(WorkerError):
    code = "not_finite"
    http_status = 422

    @classmethod
    def of(cls, what: str, dtype: object) -> "NotFinite":
        """That `what` (a plural) overflow in the model's torch dtype, and what to try."""
        name = str(dtype).removeprefix("torch.")
        advice = {
            "float16": "serve the model with MODEL_DTYPE=bfloat16 or float32",
            "bfloat16": "try another prompt, or serve the model with MODEL_DTYPE=float32",
        }.get(name, "its weights or the device may be damaged")
        return cls(f"{what} are not finite numbers in {name}; {advice}")


class Cancelled(WorkerError):
    code = "cancelled"
    http_status = 503


class Internal(WorkerError):
    code = "internal"
    http_status = 500


class DeviceBroken(Internal):
    """The CUDA context is broken: every later job of this process would fail too."""
