"""Facts in a model's JSON files. Importing this module imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loading import WeightsError


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        WeightsError: the file can't be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise WeightsError(f"{file} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise WeightsError(f"{file} is no JSON: replace it ({error})") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{file} is no JSON object: replace it")
    return content


def n_layers(folder: Path) -> int | None:
    """Layers of the model in a folder, by its configuration."""
    config = _language_model(folder)
    return config.get("num_hidden_layers", config.get("n_layer"))


def d_model(folder: Path) -> int | None:
    """Width of the residual stream of the model in a folder, by its configuration."""
    config = _language_model(folder)
    return config.get("hidden_size", config.get("n_embd"))


def stored_dtype(folder: Path) -> str:
    """The dtype that a model's configuration names; bfloat16 where it names none that is served."""
    config = _language_model(folder)
    named = config.get("dtype", config.get("torch_dtype"))
    return named if named in {"float32", "float16", "bfloat16"} else "bfloat16"


def _language_model(folder: Path) -> dict[str, Any]:
    """The settings in config.json; of a multimodal model, those of its language model."""
    config = read_json(folder / "config.json")
    return config | (config.get("text_config") or {})
