"""What Prometheus reads at `/metrics`: jobs, times, the cache, memory. docs/http.md lists it."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import choose_encoder

from serving.identity import Identity

if TYPE_CHECKING:
    from loading.loaded_model import LoadedModel

# Seconds: a parsed prompt takes milliseconds, a long graph minutes.
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """The metrics of one HTTP server, in a registry of its own. May be used from any thread."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._jobs = Counter(
            "attribution_jobs",
            "jobs since the start, by how they ended: `done`, or the code of the error",
            ["action", "code"],
            registry=registry,
        )
        seconds = partial(Histogram, registry=registry, buckets=_BUCKETS)
        self._job_seconds = seconds(
            "attribution_job_seconds", "time of a job that was taken, whole", ["action"]
        )
        self._stage_seconds = seconds(
            "attribution_stage_seconds",
            "time of a job's stage, such as `attribute` or `generate`",
            ["stage"],
        )
        self._queue_seconds = seconds(
            "attribution_queue_seconds", "time that a job waited for the model"
        )
        self._cache = Counter(
            "attribution_graph_cache_requests",
            "graphs asked for, by whether their attribution was kept: `hit` or `miss`",
            ["result"],
            registry=registry,
        )
        self._cache_bytes = Gauge(
            "attribution_graph_cache_bytes",
            "memory that finished attributions take",
            registry=registry,
        )
        self._device_memory = Gauge(
            "attribution_device_memory_bytes",
            "memory of the GPU: `allocated`, `reserved` and `peak` by torch here, `free` and "
            "`total` of the device",
            ["kind"],
            registry=registry,
        )
        self._worker = Info(
            "attribution_worker", "what `/health` says of the worker; always 1", registry=registry
        )
        ProcessCollector(registry=registry)

    def count_refused(self, action: str, code: str) -> None:
        """Count a request that never became a job."""
        self._jobs.labels(action, code).inc()

    def count_job(self, code: str, event: Mapping[str, Any]) -> None:
        """Count a job that has ended, from what its log line says."""
        action = event["action"]
        self._jobs.labels(action, code).inc()
        self._job_seconds.labels(action).observe(event["total_ms"] / 1000)
        for stage, milliseconds in event["timings_ms"].items():
            self._stage_seconds.labels(stage).observe(milliseconds / 1000)
        if "queue_ms" in event:
            self._queue_seconds.observe(event["queue_ms"] / 1000)
        if "cached" in event:
            self._cache.labels("hit" if event["cached"] else "miss").inc()

    def exposition(
        self, loaded: "LoadedModel", identity: Identity, accept: str
    ) -> tuple[bytes, str]:
        """All metrics as they are now, in the form that `accept` names, and its media type."""
        known = {name: value for name, value in identity if value is not None}
        self._worker.info({**known, "revisions": ", ".join(identity.revisions)})
        self._cache_bytes.set(loaded.graphs.kept.currsize)
        for kind, n_bytes in _device_memory(loaded).items():
            self._device_memory.labels(kind).set(n_bytes)
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type


def _device_memory(loaded: "LoadedModel") -> dict[str, int]:
    """Bytes of a GPU by kind; nothing where the model is on the CPU."""
    import torch

    device = torch.device(loaded.model.cfg.device)
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "peak": torch.cuda.max_memory_allocated(device),
        "free": free,
        "total": total,
    }
