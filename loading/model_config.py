"""A model's configuration, whichever version of transformers saved it.

transformers 5 moved settings: the bases and scalings of rotary embeddings into `rope_parameters`,
the tie of a multimodal model's embeddings to the top. Version 4 reads such a file without an error
and computes with its defaults. Here each moved setting goes back to its old name, value for value,
and one that has none is refused.
"""

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from loading import UnsupportedArchitectureError
from loading.entry import Engine
from loading.model_folder import ModelConfig

# Of a rotary embedding, what version 4 reads in `rope_scaling`.
_SCALING = {
    *("rope_type", "type", "factor", "original_max_position_embeddings", "attention_factor"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    *("short_factor", "long_factor", "low_freq_factor", "high_freq_factor"),
}
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def refuse_unserved(model: ModelConfig, *, name: str, engine: Engine, is_complete: bool) -> None:
    """Raise UnsupportedArchitectureError for a model that can't run as it is configured.

    Args:
        name: the model's, for messages.
        is_complete: whether it is to be a complete replacement model.
    """
    config = as_version_4(model)
    if engine == "nnsight":
        from loading.hugging_face_model import check_config
        from loading.mapped_architectures import check_mapped

        check_mapped(config, name)
        check_config(config)
        return
    from loading.hooked_config import hooked_config

    hooked = hooked_config(config, model_name=name)
    if is_complete:
        from loading.complete_build import check_architecture

        check_architecture(hooked, name)


def as_version_4(model: ModelConfig) -> PretrainedConfig:
    """A model's configuration as transformers 4 has it. No code of the model's is run.

    Raises:
        UnsupportedArchitectureError: transformers 4 doesn't know the model, can't take one of its
            settings, or has no name for it; the message says which.
    """
    stored = model.stored
    model_type = stored.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UnsupportedArchitectureError(
            f"config.json has model_type={model_type!r}, which transformers "
            f"{transformers.__version__} doesn't know, and code that a model brings isn't run"
        )
    old = in_old_names(stored, model_type)
    try:
        config = CONFIG_MAPPING[model_type].from_dict(old, name_or_path=str(model.folder))
    except Exception as error:  # of many kinds, for values that the class can't take
        raise UnsupportedArchitectureError(
            f"config.json is none that transformers {transformers.__version__} reads for "
            f"model_type {model_type!r}: {type(error).__name__}: {error}"
        ) from error
    # Version 4 asks the language model's part whether embeddings are tied, version 5 the whole.
    text, version = config.get_text_config(), str(stored.get("transformers_version", ""))
    by_version_5 = version.partition(".")[0] not in ("", "4")
    asked, other = (config, text) if by_version_5 else (text, config)
    other.tie_word_embeddings = asked.tie_word_embeddings
    return config


def in_old_names(stored: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """A configuration as config.json has it, each setting under its name in transformers 4.

    Args:
        model_type: which one transformers 4 knows.

    Raises:
        UnsupportedArchitectureError: a setting has no such name, or has two values.
    """
    config = _rope_in_old_names(dict(stored), model_type)
    # Version 5 writes null where version 4 has False.
    if config.get("use_bidirectional_attention", False) is None:
        del config["use_bidirectional_attention"]
    if config.get("per_layer_config"):
        raise UnsupportedArchitectureError(
            "config.json has per_layer_config, layers of unlike shapes, of which there is no exact "
            "conversion"
        )
    if isinstance(config.get("text_config"), dict):
        text_type = CONFIG_MAPPING[model_type].sub_configs["text_config"].model_type
        config["text_config"] = in_old_names(config["text_config"], text_type)
    return config


def _rope_in_old_names(config: dict[str, Any], model_type: str) -> dict[str, Any]:
    rope = config.pop("rope_parameters", None)
    if not rope:
        return config
    if model_type == "gemma3_text":
        old = _ropes_of_gemma3(rope)
    elif set(rope) & _LAYER_TYPES:
        raise _no_name("rope_parameters by layer type", f"a {model_type}")
    else:
        old = _moved(rope, "rope_theta")
    for name, value in old.items():
        if config.get(name) not in (None, value):
            raise UnsupportedArchitectureError(
                f"config.json has {name}={config[name]} and, in rope_parameters, {value}: remove "
                "the one that is wrong"
            )
    return {**config, **old}


def _ropes_of_gemma3(rope: dict[str, Any]) -> dict[str, Any]:
    if set(rope) - _LAYER_TYPES:
        raise _no_name("rope_parameters that aren't by layer type", "a Gemma 3 model")
    local = _moved(rope.get("sliding_attention") or {}, "rope_local_base_freq")
    if local.pop("rope_scaling") or local.keys() - {"rope_local_base_freq"}:
        raise _no_name("a rope scaling of sliding_attention layers", "a Gemma 3 model")
    return {**_moved(rope.get("full_attention") or {}, "rope_theta"), **local}


def _moved(rope: dict[str, Any], base: str) -> dict[str, Any]:
    """One rotary embedding's parameters under their old names."""
    scaling = dict(rope)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    theta, share = scaling.pop("rope_theta", None), scaling.pop("partial_rotary_factor", None)
    if kind not in _ROPE_TYPES:
        raise UnsupportedArchitectureError(
            f"rope_parameters has rope_type={kind!r}, which transformers "
            f"{transformers.__version__} doesn't know; {', '.join(_ROPE_TYPES)} are served"
        )
    for name in scaling.keys() - _SCALING:
        raise _no_name(f"{name!r} in rope_parameters", "rope_scaling")
    old = {"rope_scaling": None if kind == "default" else scaling}
    if theta is not None:
        old[base] = theta
    if share not in (None, 1.0):
        old["partial_rotary_factor"] = share
    return old


def _no_name(what: str, where: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"config.json has {what}, for which transformers {transformers.__version__} has no name "
        f"in {where}"
    )
