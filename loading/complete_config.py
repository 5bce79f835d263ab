"""What the `config.json` of a complete set's module says: a transcoder's, or a Lorsa's.

The keys and their defaults are those of llamascopium, which writes such files. A value that has no
exact implementation here is refused by name. Keys that llamascopium doesn't know are ignored as it
ignores them: whatever changes a module has tensors too, and an unknown tensor is refused. Importing
this module imports no torch.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError

from loading import WeightsError
from loading.json_files import read_json

logger = logging.getLogger(__name__)

MODULE_CONFIG = "config.json"

ModuleKind = Literal["transcoder", "lorsa"]
_KINDS: dict[Any, ModuleKind] = {"sae": "transcoder", "lorsa": "lorsa"}
# Where each kind reads and writes in a block of the model. What is read has no gain of the norm.
_HOOKS: dict[ModuleKind, tuple[str, str]] = {
    "transcoder": ("ln2.hook_normalized", "hook_mlp_out"),
    "lorsa": ("ln1.hook_normalized", "hook_attn_out"),
}
_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")

# What the training went by and what a run doesn't: norms that were folded into the weights, the
# window of a gradient, kernels, devices, where the weights were loaded from.
_IGNORED = {
    *("norm_activation", "jumprelu_threshold_window"),
    *("use_triton_kernel", "sparsity_threshold_for_triton_spmm_kernel"),
    *("device", "dtype", "sae_pretrained_name_or_path", "strict_loading"),
    *("NTK_by_parts_factor", "NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor"),
    "old_context_len",
}

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class ModuleConfig(BaseModel):
    """What both kinds have. `top_k` counts for the activation `topk` alone."""

    model_config = ConfigDict(extra="allow", frozen=True)

    d_model: PositiveInt
    expansion_factor: _Positive
    hook_point_in: str
    hook_point_out: str
    act_fn: Annotated[Literal["relu", "topk", "jumprelu"], BeforeValidator(_lower)] = "relu"
    top_k: PositiveInt = 50
    use_decoder_bias: bool = True
    sparsity_include_decoder_norm: bool = True

    @property
    def d_sae(self) -> int:
        """How many features it has."""
        return int(self.d_model * self.expansion_factor)


class TranscoderConfig(ModuleConfig):
    """A transcoder's."""

    sae_type: Literal["sae"]
    use_glu_encoder: bool = False


class LorsaConfig(ModuleConfig):
    """A Lorsa's."""

    sae_type: Literal["lorsa"]
    n_qk_heads: PositiveInt
    d_qk_head: PositiveInt
    n_ctx: PositiveInt
    positional_embedding_type: Literal["rotary", "none"] = "rotary"
    rotary_dim: PositiveInt | None = None
    rotary_base: _Positive = 10_000
    rotary_adjacent_pairs: bool = True
    rotary_scale: Literal[1] = 1
    use_NTK_by_parts_rope: Literal[False] = False
    attn_scale: _Positive | None = None
    use_post_qk_ln: bool = False
    normalization_type: Literal["LN", "RMS"] | None = None
    eps: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-6

    @property
    def rotary_dimensions(self) -> int | None:
        """How many dimensions of queries and keys rotary embeddings turn; None: there are none."""
        return None if self.positional_embedding_type == "none" else self.rotary_dim

    @property
    def score_divisor(self) -> float:
        """What attention scores are divided by."""
        return self.d_qk_head**0.5 if self.attn_scale is None else self.attn_scale


@dataclass(frozen=True)
class Described:
    """A module as its configuration describes it."""

    file: Path
    kind: ModuleKind
    layer: int  # of the language model, by the hook points
    config: TranscoderConfig | LorsaConfig


def read_module_config(file: Path) -> Described:
    """Read a module's `config.json`.

    Raises:
        WeightsError: it can't be read, lacks a key, or has a value that isn't served.
    """
    keys = read_json(file)
    kind = _KINDS.get(keys.get("sae_type"))
    if kind is None:
        raise WeightsError(
            f"{file} has sae_type {keys.get('sae_type')!r}: of a complete set 'sae' (a "
            "transcoder) and 'lorsa' are served"
        )
    config: TranscoderConfig | LorsaConfig
    try:
        config = (TranscoderConfig if kind == "transcoder" else LorsaConfig).model_validate(keys)
    except ValidationError as error:
        raise WeightsError(f"{file} {_explain(error.errors()[0])}") from None
    unknown = sorted((config.model_extra or {}).keys() - _IGNORED)
    if unknown:
        logger.warning("%s has keys that are ignored: %s", file, ", ".join(unknown))
    _check_sizes(file, config)
    if isinstance(config, LorsaConfig):
        _check_attention(file, config)
    return Described(file, kind, _layer(file, kind, config), config)


def _explain(detail: Any) -> str:
    key, value = detail["loc"][0], detail["input"]
    if detail["type"] == "missing":
        return f"has no {key!r}: add it, as llamascopium's configurations have it"
    return f"has {key} {value!r}, which is not served: {detail['msg'].lower()}"


def _check_sizes(file: Path, config: ModuleConfig) -> None:
    if config.d_sae < 1:
        raise WeightsError(
            f"{file} has expansion_factor {config.expansion_factor!r}, which leaves no feature: "
            "correct it"
        )
    if config.act_fn == "topk" and config.top_k > config.d_sae:
        raise WeightsError(
            f"{file} has top_k {config.top_k}, and there are {config.d_sae} features: correct it"
        )


def _check_attention(file: Path, config: LorsaConfig) -> None:
    if config.d_sae % config.n_qk_heads:
        raise WeightsError(
            f"{file} has n_qk_heads {config.n_qk_heads}, of which {config.d_sae} features can't "
            "have equally many each: correct it"
        )
    if config.use_post_qk_ln and config.normalization_type != "RMS":
        raise WeightsError(
            f"{file} has normalization_type {config.normalization_type!r} and use_post_qk_ln: "
            "norms of queries and keys are served as 'RMS' alone"
        )
    rotary_dim = config.rotary_dim
    if config.positional_embedding_type == "rotary" and (
        rotary_dim is None or rotary_dim % 2 or rotary_dim > config.d_qk_head
    ):
        raise WeightsError(
            f"{file} has rotary_dim {rotary_dim!r}: it has to be even and at most d_qk_head, "
            f"{config.d_qk_head}"
        )


def _layer(file: Path, kind: ModuleKind, config: ModuleConfig) -> int:
    """The layer that the hook points name. The folder's name says nothing of it."""
    layers = set()
    for key, usual in zip(("hook_point_in", "hook_point_out"), _HOOKS[kind], strict=True):
        hook = getattr(config, key)
        match = _HOOK.fullmatch(hook)
        if match is None or match[2] != usual:
            raise WeightsError(
                f"{file} has {key} {hook!r}: of a {kind} 'blocks.<layer>.{usual}' is served"
            )
        layers.add(int(match[1]))
    if len(layers) > 1:
        raise WeightsError(
            f"{file} has hook_point_in {config.hook_point_in!r} and hook_point_out "
            f"{config.hook_point_out!r}: both have to be of one layer"
        )
    return layers.pop()
