"""What becomes of a job on Runpod: its output, written as JSON once, or its error."""

from dataclasses import dataclass
from typing import Any

import orjson

# What is posted besides the output itself.
ENVELOPE_BYTES = len(b'{"output":}')


@dataclass(frozen=True)
class JobResult:
    """An output (JSON) or an error; with `refresh_worker` Runpod replaces the worker after it."""

    output: bytes | None = None
    error: str | None = None
    refresh_worker: bool = False

    def body(self) -> bytes:
        """What is posted to Runpod."""
        if self.error is None and self.output is not None:
            return b'{"output":' + self.output + b"}"
        stop = {"stopPod": True} if self.refresh_worker else {}
        return orjson.dumps({"error": self.error, **stop})

    def as_dict(self) -> dict[str, Any]:
        """What a handler of the SDK's returns."""
        if self.error is None and self.output is not None:
            output: dict[str, Any] = orjson.loads(self.output)
            return output
        refresh = {"refresh_worker": True} if self.refresh_worker else {}
        return {"error": self.error, **refresh}
