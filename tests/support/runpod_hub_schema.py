"""What Runpod publishes of the hub's files, as JSON schemas.

https://docs.runpod.io/hub/publishing-guide (20 July 2026) and, for pools,
https://docs.runpod.io/references/gpu-types (18 August 2026).
"""

from typing import Any

# GB, as the page of GPU types has them.
GPU_POOLS = {
    "AMPERE_16": 16,
    "AMPERE_24": 24,
    "ADA_24": 24,
    "AMPERE_48": 48,
    "ADA_48_PRO": 48,
    "AMPERE_80": 80,
    "ADA_80_PRO": 80,
    "HOPPER_141": 141,
}
_TEXT = {"type": "string", "minLength": 1}
_POOL = "(" + "|".join(GPU_POOLS) + ")"
_CUDA_VERSIONS = {"type": "array", "items": {"type": "string", "pattern": r"^\d+\.\d+$"}}
_VARIABLE = {"type": "string", "pattern": r"^[A-Z][A-Z0-9_]*$"}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _input(kind: str, default: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    flags = {"required": {"type": "boolean"}, "advanced": {"type": "boolean"}, "default": default}
    described = {"name": _TEXT, "description": _TEXT, "type": {"const": kind}}
    return _object(described, {**flags, **more})


_OPTION = _object({"label": _TEXT, "value": {"type": "string"}})
_INPUT = {
    "oneOf": [
        _input("string", {"type": "string"}, {"options": {"type": "array", "items": _OPTION}}),
        _input("huggingface", {"type": "string"}, {}),
        _input(
            "number", {"type": "number"}, {"min": {"type": "number"}, "max": {"type": "number"}}
        ),
        _input(
            "boolean",
            {"type": "boolean"},
            {"trueValue": {"type": "string"}, "falseValue": {"type": "string"}},
        ),
    ]
}
_ENV = {
    "oneOf": [
        _object({"key": _VARIABLE, "value": {"type": "string"}}),
        _object({"key": _VARIABLE, "input": _INPUT}),
    ]
}
_DEFAULTS = {
    "type": "object",
    "propertyNames": _VARIABLE,
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
HUB = _object(
    {
        "title": _TEXT,
        "description": _TEXT,
        "type": {"const": "serverless"},
        "category": {"enum": ["audio", "embedding", "language", "video", "image"]},
        "config": _object(
            {
                "runsOn": {"const": "GPU"},
                "containerDiskInGb": {"type": "integer", "minimum": 1},
                "gpuCount": {"type": "integer", "minimum": 1},
                "gpuIds": {"type": "string", "pattern": f"^{_POOL}(,{_POOL})*$"},
            },
            {
                "endpointType": {"const": "LB"},
                "allowedCudaVersions": _CUDA_VERSIONS,
                "presets": {
                    "type": "array",
                    "items": _object({"name": _TEXT, "defaults": _DEFAULTS}),
                },
                "env": {"type": "array", "items": _ENV},
            },
        ),
    },
    {"iconUrl": {"type": "string", "pattern": r"^https://\S+$"}},
)
TESTS = _object(
    {
        "tests": {
            "type": "array",
            "minItems": 1,
            "items": _object(
                {"name": _TEXT, "input": {"type": "object"}},
                {"timeout": {"type": "integer", "minimum": 1}},
            ),
        },
        "config": _object(
            {"gpuTypeId": _TEXT, "gpuCount": {"type": "integer", "minimum": 1}},
            {
                "env": {
                    "type": "array",
                    "items": _object({"key": _VARIABLE, "value": {"type": "string"}}),
                },
                "allowedCudaVersions": _CUDA_VERSIONS,
            },
        ),
    }
)
