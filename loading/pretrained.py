"""A model's configuration and tokenizer, whichever version of transformers saved them.

transformers 5 moved settings: the bases and scalings of rotary embeddings into `rope_parameters`,
the tie of a multimodal model's embeddings to the top. Version 4 reads such a file without an error
and computes with its defaults. Here each moved setting goes back to its old name, value for value,
and one that has none is refused. So are settings and quantised weights that no engine serves.

Version 5 also names classes of tokenizers that version 4 lacks, and lists as `extra_special_tokens`
what version 4 reads as `additional_special_tokens`. All that such a tokenizer does to text is in
tokenizer.json, which both versions read with the same library.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from loading import UnsupportedArchitectureError, WeightsError
from loading.bounds import TOKENIZER_BYTES, brief_list
from loading.json_files import check_file, read_json
from loading.model_folder import read_model_config
from prompting import template_grammar, tokenizer_parts
from prompting.template_process import TemplateTooCostly
from prompting.tokenizer_process import (
    BOUNDS,
    Bounds,
    TokenizerProcess,
    TokenizerTooCostly,
    rehearse_all,
)

# Settings that change what a model computes and that neither engine follows, each with the one
# value that is served.
_ONLY_SERVED: dict[str, Any] = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "partial_rotary_factor": 1.0,
    "pruned_heads": {},
    "use_bidirectional_attention": False,
}
# Of a rotary embedding, what version 4 reads in `rope_scaling`.
_SCALING = {
    *("rope_type", "type", "factor", "original_max_position_embeddings", "attention_factor"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    *("short_factor", "long_factor", "low_freq_factor", "high_freq_factor"),
}
# Where transformers looks for chat templates, the one that wins first.
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
_TOKENIZER_SUFFIXES = (".json", ".jinja", ".txt", ".model")
# Runs on which patterns go back, and what ends them.
_RUNS = (" ", "a", "A", "1", "!", "é", "中", "\n", "a ", " \n", "a1", "aA")
_HARD_TEXTS = [
    "".join(run * (1000 // len(run)) + end for end in ("", "\0", "\n!", "b")) for run in _RUNS
]
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def read_config(directory: Path) -> PretrainedConfig:
    """The `transformers` configuration of a model's directory. No code of the model's is run.

    Raises:
        UnsupportedArchitectureError: transformers 4 doesn't know the model, or has no name for one
            of its settings; the message says which.
        WeightsError: config.json can't be read, or has a number that no model has.
    """
    stored = read_model_config(directory)
    model_type = stored.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UnsupportedArchitectureError(
            f"config.json has model_type={model_type!r}, which transformers "
            f"{transformers.__version__} doesn't know, and code that a model brings isn't run"
        )
    old = in_old_names(stored, model_type)
    config = CONFIG_MAPPING[model_type].from_dict(old, name_or_path=str(directory))
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


def check_served(config: Any, only_served: Mapping[str, Any]) -> None:
    """Check the values of a model's configuration, and of its language model's.

    Args:
        config: its `transformers` configuration.
        only_served: what one engine doesn't follow, as in `refuse_other_values`.

    Raises:
        UnsupportedArchitectureError: a setting has a value that isn't served, or the weights are
            quantised other than GPT-OSS's, whose MXFP4 stands for numbers that bfloat16 has too.
    """
    for part in (config, config.get_text_config()):
        refuse_other_values(part, {**_ONLY_SERVED, **only_served})
        quantization = getattr(part, "quantization_config", None) or {}
        if not isinstance(quantization, dict):
            quantization = quantization.to_dict()
        method = quantization.get("quant_method")
        if quantization and (method != "mxfp4" or config.model_type != "gpt_oss"):
            raise UnsupportedArchitectureError(
                f"the model's configuration has quantization_config: its weights are quantised "
                f"({method}), and attribution needs them in bfloat16, float16 or float32; serve a "
                "copy that is"
            )


def refuse_other_values(config: Any, served: Mapping[str, Any]) -> None:
    """Raise UnsupportedArchitectureError where a configuration has another value than is served."""
    for name, only in served.items():
        value = getattr(config, name, only)
        if value != only:
            raise UnsupportedArchitectureError(
                f"the model's configuration has {name}={str(value)[:80]}, of which there is no "
                f"exact conversion; only {name}={only} is served"
            )


def rope_type(config: Any) -> str:
    """How a language model's rotary embeddings are scaled; "default": not at all."""
    return _rope_type(getattr(config, "rope_scaling", None) or {})


def _rope_type(scaling: Mapping[str, Any]) -> str:
    kind: str = scaling.get("rope_type", scaling.get("type", "default"))
    return kind


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
    kind = _rope_type(scaling)
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


def read_tokenizer(directory: Path, bounds: Bounds = BOUNDS) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's directory. No code of the model's is run.

    Args:
        bounds: of a tokenizer that isn't known to be quick, for each text.

    Raises:
        WeightsError: transformers 5 saved it in a form that version 4 can't read; a file is too
            large, or takes too much time or memory for a text.
        Exception: whatever transformers raises for files that are unreadable.
    """
    _check_tokenizer_files(directory)
    for file in sorted(directory.glob("tokenizer*.json")):
        if file.name != "tokenizer_config.json":
            _check_parts(file, bounds)
    tokenizer = _read_tokenizer(directory)
    if tokenizer.is_fast and tokenizer_parts.unknown_parts(
        tokenizer_parts.state_of(tokenizer.backend_tokenizer)
    ):
        rehearse_all(tokenizer, bounds)
    return tokenizer


def _check_parts(file: Path, bounds: Bounds) -> None:
    """Raise WeightsError for a tokenizer.json that takes too much for a text, or may decode so."""
    try:
        content = file.read_bytes()
        state = tokenizer_parts.state_in(content)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file} is no JSON that can be read: replace it ({error})") from None
    if fields := tokenizer_parts.unknown_decoders(state):
        raise WeightsError(
            f"{file} is not served: {brief_list(fields)} can make its decoder take time without "
            "end; replace it with a pattern without repetition, and with no longer text"
        )
    fields = tokenizer_parts.unknown_parts(state)
    if not fields:
        return
    process = TokenizerProcess(content.decode("utf-8", "replace"), bounds)
    try:
        for text in _HARD_TEXTS:
            process.rehearse([text])
    except TokenizerTooCostly:
        raise WeightsError(
            f"{file} is not served: with its {brief_list(fields)} reading it, or a text of "
            f"{len(text)} characters, takes more than {bounds.cpu_s:g} s or "
            f"{bounds.memory_bytes >> 20} MiB; replace it with the file of a published model"
        ) from None
    except ValueError:
        pass  # transformers says what is wrong with it
    finally:
        process.close()


def _read_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    file = directory / "tokenizer_config.json"
    saved = read_json(file) if file.is_file() else {}
    special = {}
    if isinstance(saved.get("extra_special_tokens"), list):
        extra = saved["extra_special_tokens"]
        special = {"extra_special_tokens": {}, "additional_special_tokens": extra}
    # Only version 5 saves the name of the library that tokenizes.
    name, backend = saved.get("tokenizer_class"), saved.get("backend")
    if backend is None and name != "TokenizersBackend":
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, **special
        )
        return tokenizer
    if not (directory / "tokenizer.json").is_file() or backend not in (None, "tokenizers"):
        raise WeightsError(
            f"{file} was saved by transformers 5 ({backend or name}), and of such tokenizers the "
            "worker reads only those with a tokenizer.json: save it anew as a fast tokenizer"
        )
    # Not the class that the file names, of which transformers warns: version 4's may change what
    # tokenizer.json says.
    logger = logging.getLogger("transformers.tokenization_utils_base")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return PreTrainedTokenizerFast.from_pretrained(
            directory, trust_remote_code=False, **special
        )
    finally:
        logger.setLevel(level)


def check_template(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Render short messages of every run of roles, as jobs do.

    A template can do otherwise with the messages of a job: then the same bounds end that job.

    Raises:
        WeightsError: the template takes more time or memory than it may; the message names its
            file.
    """
    if not tokenizer.chat_template:
        return
    try:
        template_grammar.learn(tokenizer)
    except TemplateTooCostly as error:
        found = [directory / name for name in _TEMPLATE_FILES if (directory / name).exists()]
        reason = error.sentence.removeprefix("messages: ").partition(";")[0]
        raise WeightsError(
            f"{found[0] if found else directory} is not served: {reason}; replace its chat "
            "template, or remove it"
        ) from error


def _check_tokenizer_files(directory: Path) -> None:
    """Raise WeightsError for a file that a tokenizer is read from and that is too large to be."""
    for file in sorted(directory.iterdir()):
        if file.suffix in _TOKENIZER_SUFFIXES and file.exists():
            check_file(file, TOKENIZER_BYTES)
    for name in ("added_tokens.json", "special_tokens_map.json"):  # transformers reads them itself
        if (directory / name).exists():
            read_json(directory / name)
    for template in (directory / "additional_chat_templates").glob("*.jinja"):
        check_file(template, TOKENIZER_BYTES)
