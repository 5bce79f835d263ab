"""The SDK's local API (`handler.py --rp_serve_api`), with the `GET /health` that Runpod has."""

from typing import Any

from runpod.serverless.modules import rp_fastapi


class LocalApi(rp_fastapi.WorkerAPI):
    """The SDK's API, which counts its jobs for `/health`. Used on the event loop only."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__({**config, "handler": self._counted})
        self._handler = config["handler"]
        self._under_way = self._completed = self._failed = 0
        self.rp_app.add_api_route("/health", self.health, summary="Jobs and workers.")

    async def _counted(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run the handler. It turns every failure of a job into an output with `error`."""
        self._under_way += 1
        try:
            output: dict[str, Any] = await self._handler(job)
        finally:
            self._under_way -= 1
        has_failed = "error" in output
        self._failed += has_failed
        self._completed += not has_failed
        return output

    async def health(self) -> dict[str, dict[str, int]]:
        """Runpod's form. One job has the model at a time; the others wait for it."""
        running = min(self._under_way, 1)
        return {
            "jobs": {
                "completed": self._completed,
                "failed": self._failed,
                "inProgress": running,
                "inQueue": self._under_way - running,
                "retried": 0,
            },
            "workers": {"idle": 1 - running, "running": running},
        }


def install() -> None:
    """Have the SDK serve this API in the place of its own."""
    rp_fastapi.WorkerAPI = LocalApi
