"""The files by which Runpod's hub offers the worker, made from the settings and the presets.

Their form is that of https://docs.runpod.io/hub/publishing-guide (20 July 2026).
`python -m tools.presets --write` writes them.
"""

import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from settings import Settings
from tools.documents import ROOT
from tools.presets import POOLS, PRESETS, REPOSITORY, Preset

QUEUE = ROOT / ".runpod" / "hub.json"
LOAD_BALANCER = ROOT / ".runpod" / "hub-load-balancer.json"
# The HTTP door's own; the image and Runpod set the others.
OF_THE_HTTP_DOOR = {"SECRET", "SERVER_HOST", "SERVER_PORT", "PORT", "PORT_HEALTH"}
OF_THE_IMAGE = {"IMAGE_WEIGHTS", "HF_TOKEN_PATH", "WORKER_VERSION", "WORKER_REVISION"}
NOT_OFFERED = OF_THE_HTTP_DOOR | OF_THE_IMAGE
SHOWN = {"MODEL_ID", "TRANSCODER_SET", "TOKEN_LIMIT", "MAX_FEATURE_NODES", "HF_TOKEN"}
NAMES = {
    "MODEL_ID": "Model",
    "TRANSCODER_SET": "Transcoders",
    "MODEL_DTYPE": "Data type",
    "MODEL_ENGINE": "Engine",
    "ATTRIBUTION_ENGINE": "Attribution engine",
    "SAE_REPO": "Complete set",
    "SAE_EXPANSION": "Complete set: expansion",
    "SAE_TOPK": "Complete set: top-k",
    "NP_MODEL_ID": "Neuronpedia: model",
    "NP_TRANSCODER_SOURCE_SET": "Neuronpedia: transcoders",
    "NP_LORSA_SOURCE_SET": "Neuronpedia: Lorsas",
    "CPU_THREADS": "CPU threads",
    "MAX_OUTPUT_BYTES": "Largest output (bytes)",
    "GRAPH_CACHE_BYTES": "Graph cache (bytes)",
    "UPLOAD_TIMEOUT_S": "Upload timeout (s)",
    "SHUTDOWN_GRACE_S": "Shutdown grace (s)",
    "HF_TOKEN": "Hugging Face token",
    "HF_HOME": "Weights folder",
    "HF_HUB_CACHE": "Download folder",
    "SENTRY_DSN": "Sentry DSN",
}
# Runpod's own variables.
PLATFORM: list[dict[str, Any]] = [
    {
        "key": "RUNPOD_INIT_TIMEOUT",
        "input": {
            "name": "Start timeout (s)",
            "description": "Seconds until Runpod ends a worker that isn't ready",
            "type": "number",
            "min": 1,
            "default": 1800,
            "required": False,
            "advanced": False,
        },
    },
    {
        "key": "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS",
        "input": {
            "name": "Leave out the SDK's checks",
            "description": "Leave out the checks that Runpod's SDK adds to the worker's own",
            "type": "boolean",
            "trueValue": "true",
            "falseValue": "false",
            "default": False,
            "required": False,
            "advanced": True,
        },
    },
]


def offered() -> dict[str, FieldInfo]:
    """The settings that the hub's form has a field for, by variable."""
    fields = {name.upper(): field for name, field in Settings.model_fields.items()}
    return {
        key: field
        for key, field in fields.items()
        if key not in NOT_OFFERED and not key.startswith("RUNPOD_")
    }


def hub_input(key: str, field: FieldInfo) -> dict[str, Any]:
    """A field of the hub's form, as the setting is."""
    meaning = field.description or ""
    sentence = (meaning[:1].upper() + meaning[1:]).replace("`", "")
    kind = _input_type(key, field.annotation)
    options = _options(field)
    bounds = {
        name: int(bound) or 1 if name == "min" and strict else int(bound)
        for name, bound, strict in _bounds(field)
    }
    return {
        "name": NAMES.get(key, key.replace("_", " ").capitalize()),
        "description": sentence,
        "type": kind,
        **({"trueValue": "true", "falseValue": "false"} if kind == "boolean" else {}),
        **({"options": options} if options else {}),
        **(bounds if kind == "number" else {}),
        "default": _default(key, field),
        "required": field.is_required(),
        "advanced": key not in SHOWN,
    }


def files() -> dict[Path, dict[str, Any]]:
    """The hub's files by path."""
    inputs = [{"key": key, "input": hub_input(key, field)} for key, field in offered().items()]
    secret = hub_input("SECRET", Settings.model_fields["secret"])
    for_http: list[dict[str, Any]] = [
        {"key": "PORT", "value": "80"},  # the one that Runpod asks for where none is set
        {"key": "SECRET", "input": {**secret, "required": True, "advanced": False}},
    ]
    return {
        QUEUE: _hub("Attribution graphs and steering", {}, [*inputs, *PLATFORM]),
        LOAD_BALANCER: _hub(
            "Attribution graphs and steering over HTTP",
            {"endpointType": "LB"},
            [*for_http, *inputs, *PLATFORM],
        ),
    }


def _hub(title: str, endpoint: dict[str, str], env: list[dict[str, Any]]) -> dict[str, Any]:
    listed = [preset for preset in PRESETS if not preset.needs_volume]
    return {
        "title": title,
        "description": "Attribution graphs of a prompt, and text steered by features, with "
        "circuit-tracer on models with trained transcoders.",
        "type": "serverless",
        "category": "language",
        "iconUrl": f"https://raw.githubusercontent.com/{REPOSITORY}/main/.runpod/icon.png",
        "config": {
            "runsOn": "GPU",
            **endpoint,
            "containerDiskInGb": max(preset.disk_gb for preset in listed),
            "gpuCount": 1,
            "gpuIds": ",".join(POOLS),
            "allowedCudaVersions": ["12.8", "12.9", "13.0"],
            "presets": [*map(_preset, listed), _DEMO],
            "env": env,
        },
    }


def _preset(preset: Preset) -> dict[str, Any]:
    defaults = {
        "MODEL_ID": preset.entry.model,
        "TRANSCODER_SET": preset.entry.transcoder_set,
        "RUNPOD_INIT_TIMEOUT": preset.init_timeout_s,
    }
    return {"name": preset.hub_name, "defaults": defaults}


_DEMO = {
    "name": "Demo model · any GPU, no download",
    "defaults": {"MODEL_ID": "", "TRANSCODER_SET": "", "RUNPOD_INIT_TIMEOUT": 600},
}


def _input_type(key: str, annotation: Any) -> str:
    if key == "MODEL_ID":
        return "huggingface"
    return {bool: "boolean", int: "number", float: "number"}.get(annotation, "string")


def _options(field: FieldInfo) -> list[dict[str, str]]:
    """The values that a setting takes, where they are few."""
    values: tuple[str, ...] = ()
    is_union = get_origin(field.annotation) in (Union, types.UnionType)
    for part in get_args(field.annotation) if is_union else (field.annotation,):
        if get_origin(part) is Literal:
            values += get_args(part)
        elif part is bool and is_union:
            values += ("true", "false")
    unset = [{"label": "automatic", "value": ""}] if values and field.default is None else []
    return unset + [{"label": value, "value": value} for value in values]


def _bounds(field: FieldInfo) -> list[tuple[str, float, bool]]:
    """(min or max, the bound, whether the bound itself is out) of a setting."""
    names = {"ge": "min", "gt": "min", "le": "max", "lt": "max"}
    return [
        (names[name], getattr(rule, name), name in ("gt", "lt"))
        for rule in field.metadata
        for name in names
        if hasattr(rule, name)
    ]


def _default(key: str, field: FieldInfo) -> Any:
    """The image's default, or the setting's; text where the form has text."""
    image = dict(re.findall(r"(HF_HOME)=(/runpod\S+)", (ROOT / "Dockerfile").read_text()))
    value = image.get(key, field.default)
    return "" if value in (None, ()) else value
