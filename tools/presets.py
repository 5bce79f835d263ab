"""Each known model on Runpod: its GPUs, disk, first start, and what it costs.

    python -m tools.presets            the tables of docs/presets.md
    python -m tools.presets --write    writes them, docs/endpoints/, the hub's files, and the names
                                       of image and repository wherever documents have them

A graph's seconds are those of `benchmarks.preset_costs`. The rest follows from the registry's
shapes and from what Runpod publishes: its pools (https://docs.runpod.io/references/gpu-types,
18 August 2026) and prices (https://docs.runpod.io/serverless/endpoints/endpoint-configurations,
8 June 2026).
"""

import argparse
import json
import re
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

from loading.entry import ModelEntry
from loading.footprint import device_bytes, disk_bytes
from loading.references import Reference
from loading.registry import REGISTRY
from tools.documents import ROOT

# The repository on GitHub. The release workflow refuses to push an image of another name.
REPOSITORY = "attribution-worker/attribution-worker"
ENDPOINTS = ROOT / "docs" / "endpoints"


class Pool(NamedTuple):
    """A pool of GPUs that an endpoint can ask for."""

    memory: int  # GB
    price: float  # dollars a second of a worker that scales to zero
    card: str  # the one of its cards by which a graph's seconds are computed


POOLS = {
    "AMPERE_24": Pool(24, 0.00019, "L4"),
    "ADA_24": Pool(24, 0.00031, "RTX 4090"),
    "AMPERE_48": Pool(48, 0.00034, "A40"),
    "ADA_48_PRO": Pool(48, 0.00053, "L40S"),
    "AMPERE_80": Pool(80, 0.00076, "A100"),
    "ADA_80_PRO": Pool(80, 0.00116, "H100"),
    "HOPPER_141": Pool(141, 0.00155, "H200"),
}
# CUDA's context, its libraries' workspaces and what the allocator can't use.
GPU_RESERVE = 2e9
# A disk keeps a tenth free, which Runpod's SDK checks, and room for graphs on their way to a store.
FREE_SHARE, DISK_RESERVE = 0.1, 3e9
# Above it the weights belong on a network volume; the container then needs little.
LARGEST_DISK_GB, DISK_BESIDE_A_VOLUME_GB = 220, 20
GBIT = 1e9 / 8
# Assumed: imports, checks and a first graph; what a disk gives that weights are read from.
START_S, DISK_BYTES_PER_S = 30, 2e9
# Its files are copied at the start into a layout that can stay on the disk.
CONVERTED = ("mwhanna/gemma-scope-2-27b-pt/transcoder_all/width_262k_l0_small",)
GATED = ("google/", "meta-llama/")

# By model and transcoders: the preset's name in commands, image tags and files.
SLUGS = {
    "mntss/gemma-scope-transcoders": "gemma-2-2b-npz",
    "mntss/clt-gemma-2-2b-2.5M": "gemma-2-2b-clt-2-5m",
    "mntss/clt-gemma-2-2b-426k": "gemma-2-2b-clt-426k",
    "mntss/clt-llama-3.2-1b-524k": "llama-3-2-1b-clt-524k",
    "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B/8x/k64": "qwen3-1-7b-complete",
    "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B/32x/k64": "qwen3-1-7b-complete-32x",
    "mwhanna/gemma-scope-2-270m-pt/clt/width_262k_l0_medium_affine": "gemma-3-270m-clt",
}


@dataclass(frozen=True)
class Preset:
    """A model with its transcoders, and what an endpoint for it needs."""

    entry: ModelEntry

    @property
    def slug(self) -> str:
        name = re.sub(r"[._]", "-", self.entry.model.rpartition("/")[2].lower())
        return SLUGS.get(self.entry.transcoder_set, name)

    @property
    def label(self) -> str:
        """Model and transcoders as people call them."""
        model = self.entry.model.rpartition("/")[2]
        _, name, *folder = self.entry.transcoder_set.split("/")
        if self.entry.attribution_engine == "lm-saes-crm":
            name = f"complete, {' '.join(folder)}"
        elif folder:
            width = re.search(r"width_(\d+k)", folder[-1])
            kind = "cross-layer" if folder[0] == "clt" else "transcoders"
            name = f"gemma-scope-2 {kind} {width[1] if width else ''}".rstrip()
        return f"{model} · {name}" + (", .npz" if self.slug.endswith("-npz") else "")

    @property
    def model_bytes(self) -> float:
        assert self.entry.shapes is not None
        return self.entry.shapes.parameters * self.entry.shapes.model_bytes

    @property
    def fetched_bytes(self) -> float:
        """Bytes that are downloaded."""
        assert self.entry.shapes is not None
        return disk_bytes(self.entry.shapes)

    @property
    def copied_bytes(self) -> float:
        """Bytes that a conversion at the start writes beside them."""
        is_copied = self.entry.transcoder_set in CONVERTED
        return self.fetched_bytes - self.model_bytes if is_copied else 0

    @property
    def gpu_bytes(self) -> float:
        assert self.entry.shapes is not None
        entry = self.entry
        lazy = {"lazy_encoder": entry.lazy_encoder, "lazy_decoder": entry.lazy_decoder}
        return device_bytes(self.entry.shapes, **lazy)

    @property
    def gpu_gb(self) -> int:
        """Memory of the smallest GPU that holds it."""
        needed = self.gpu_bytes + GPU_RESERVE
        return min(pool.memory for pool in POOLS.values() if needed <= pool.memory * 1e9)

    @property
    def pools(self) -> list[str]:
        return [name for name, pool in POOLS.items() if pool.memory == self.gpu_gb]

    @property
    def needs_volume(self) -> bool:
        return self._disk_for_weights > LARGEST_DISK_GB

    @property
    def disk_gb(self) -> int:
        """Container disk, in whole tens."""
        return DISK_BESIDE_A_VOLUME_GB if self.needs_volume else self._disk_for_weights

    @property
    def volume_gb(self) -> int:
        """A network volume for the weights, in whole tens."""
        return _tens((self.fetched_bytes + self.copied_bytes + DISK_RESERVE) / 1e9)

    @property
    def _disk_for_weights(self) -> int:
        kept = self.fetched_bytes + self.copied_bytes + DISK_RESERVE
        return _tens(kept / (1 - FREE_SHARE) / 1e9)

    def first_start_s(self, gbit: float) -> float:
        """Seconds from an empty disk to the first job, the image being there."""
        shapes = self.entry.shapes
        assert shapes is not None
        decoders = shapes.decoder * shapes.transcoder_bytes
        # Complete sets need the norms of all decoders, and have them read for these.
        unread = self.entry.lazy_decoder and not shapes.n_qk_heads
        read = self.fetched_bytes - (decoders if unread else 0)
        on_disk = (read + 2 * self.copied_bytes) / DISK_BYTES_PER_S
        return START_S + self.fetched_bytes / (gbit * GBIT) + on_disk

    @property
    def init_timeout_s(self) -> int:
        """Twice the first start at 1 Gbit/s, in whole five minutes, and at least ten."""
        return max(600, ceil(2 * self.first_start_s(1) / 300) * 300)

    @property
    def cached_repository(self) -> str:
        """What the one cached model of an endpoint is best used for.

        The larger part, if its repository has no more than that: Runpod downloads repositories
        whole, and those with several sets have hundreds of gigabytes.
        """
        transcoders = self.entry.transcoder_set
        is_whole = transcoders == Reference.parse(transcoders).repository
        is_whole &= not self.entry.weight_urls
        larger = self.fetched_bytes > 2 * self.model_bytes
        return transcoders if is_whole and larger else self.entry.model

    @property
    def hub_name(self) -> str:
        """The label with GPU, disk and first start, which the hub's form can't set."""
        start = in_minutes(self.first_start_s(1))
        return f"{self.label} · {self.gpu_gb} GB GPU, {self.disk_gb} GB disk, {start} first start"

    @property
    def environment(self) -> dict[str, str]:
        """The endpoint's variables."""
        token = {"HF_TOKEN": "{{ RUNPOD_SECRET_hf_token }}"}  # Runpod's way to name a secret
        return {
            "MODEL_ID": self.entry.model,
            "TRANSCODER_SET": self.entry.transcoder_set,
            **(token if self.entry.model.startswith(GATED) else {}),
            "RUNPOD_INIT_TIMEOUT": str(self.init_timeout_s),
        }

    def endpoint(self) -> dict[str, Any]:
        """The body of a POST to Runpod's /v2/serverless."""
        volume = {"networkVolumes": ["NETWORK_VOLUME_ID"], "dataCenterIds": ["EU-RO-1"]}
        return {
            "name": f"attribution-{self.slug}",
            "type": "QUEUE",
            "image": image(),
            "disk": self.disk_gb,
            "env": self.environment,
            "gpu": {"pools": self.pools, "count": 1, "minCudaVersion": "12.8"},
            **(volume if self.needs_volume else {}),
            "workers": {"min": 0, "max": 2, "idleTimeout": 10},
            "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
            "flashboot": "FLASHBOOT",
            "timeout": 600_000,
        }

    def load_balancer(self) -> dict[str, Any]:
        """The same for an endpoint that forwards HTTP requests to its workers."""
        secret = {"SECRET": "{{ RUNPOD_SECRET_worker_secret }}"}
        return {
            **self.endpoint(),
            "name": f"attribution-{self.slug}-http",
            "type": "LOAD_BALANCER",
            "ports": ["5004/http"],
            "env": {**self.environment, "PORT": "5004", **secret},
            "scaling": {"type": "REQUEST_COUNT", "requestCount": 1},
        }


PRESETS = tuple(Preset(entry) for entry in REGISTRY)


def image() -> str:
    """The image of this version, as the release workflow names it."""
    version = re.search(r'^version = "(\S+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    return f"ghcr.io/{REPOSITORY}:{version[1]}"


def bodies() -> dict[str, dict[str, Any]]:
    """The files of docs/endpoints/ by name: a request's body each."""
    by_name = {preset.slug: preset.endpoint() for preset in PRESETS}
    return {**by_name, "load-balancer": PRESETS[0].load_balancer()}


def as_json(value: object) -> str:
    """JSON as it is kept in the repository."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def in_minutes(seconds: float) -> str:
    """A time, in minutes or hours."""
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{ceil(seconds / 60)} min"


def _tens(gigabytes: float) -> int:
    return ceil(gigabytes / 10) * 10


def main() -> None:
    from tools import hub_files, preset_pages

    parser = argparse.ArgumentParser(description="The known models on Runpod.")
    parser.add_argument("--write", action="store_true", help="write what is made from them")
    if not parser.parse_args().write:
        print("\n\n".join(preset_pages.tables().values()))
        return
    preset_pages.write()
    ENDPOINTS.mkdir(exist_ok=True)
    for name, body in bodies().items():
        (ENDPOINTS / f"{name}.json").write_text(as_json(body))
    for path, content in hub_files.files().items():
        path.write_text(as_json(content))


if __name__ == "__main__":
    main()
