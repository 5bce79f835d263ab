"""The two files of a complete set's module, and what their headers hold.

No tensor is read, so a module that can't be served is refused before gigabytes are loaded.
Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from loading import WeightsError
from loading.complete_config import (
    MODULE_CONFIG,
    Described,
    LorsaConfig,
    ModuleKind,
    TranscoderConfig,
    read_module_config,
)
from loading.layers import sides
from loading.tensor_files import ITEM_BYTES, Spec, tensors_in

THRESHOLD = "activation_function.log_jumprelu_threshold"

# Where llamascopium looks for a module's weights, in its order.
WEIGHTS = tuple(
    f"{stem}.{form}"
    for stem in ("sae_weights", "checkpoints/pruned", "checkpoints/final")
    for form in ("safetensors", "pt", "dcp")
)
# What a file may hold that isn't read: a causal mask of megabytes, and norms of the training that
# are stored even where they were never set.
_NOT_READ = ("mask", "IGNORE")
_NORMS = "dataset_average_activation_norm."
_OF_QK_HEADS = ("W_Q", "W_K", "b_Q", "b_K", "ln_q.w", "ln_k.w")


Config = TypeVar("Config", bound=TranscoderConfig | LorsaConfig)


@dataclass(frozen=True)
class Module(Generic[Config]):
    """A module's files, checked."""

    file: Path  # the configuration
    kind: ModuleKind
    layer: int  # of the language model
    config: Config
    weights: Path
    tensors: Mapping[str, Spec]  # those that are read, by their names in the file


def weights_among(names: Collection[str]) -> str | None:
    """Of the files that the hub has in a module's folder, the one with the weights."""

    def is_there(name: str) -> bool:  # a .dcp is a directory
        return name in names or any(n.startswith(f"{name}/") for n in names)

    return next(filter(is_there, WEIGHTS), None)


def weights_in(folder: Path) -> Path | None:
    """Of the files in a module's folder here, the one with the weights."""
    return next((folder / name for name in WEIGHTS if (folder / name).exists()), None)


def read_module(folder: Path) -> Module[Any]:
    """Read a module's configuration and the headers of its weights.

    Raises:
        WeightsError: a file is missing or can't be read, has a value that isn't served, or lacks a
            tensor, or holds one of another shape or of a name that would be ignored.
    """
    described = read_module_config(folder / MODULE_CONFIG)
    weights = weights_in(folder)
    if weights is None:
        raise WeightsError(f"{folder} holds no {WEIGHTS[0]}: complete it")
    refuse_other_formats(weights)
    tensors = {
        name: spec
        for name, spec in tensors_in(weights).items()
        if name not in _NOT_READ and not name.startswith(_NORMS)
    }
    _check_tensors(weights, described, tensors)
    return Module(
        described.file, described.kind, described.layer, described.config, weights, tensors
    )


def refuse_other_formats(file: Path | PurePosixPath) -> None:
    """Raise WeightsError for weights that aren't in the safetensors format."""
    if file.suffix != ".safetensors":
        raise WeightsError(
            f"{file}: weights are read from safetensors alone; save the module anew with "
            f"llamascopium's save_pretrained, which writes {WEIGHTS[0]}"
        )


def _check_tensors(file: Path, described: Described, tensors: Mapping[str, Spec]) -> None:
    required, optional = _shapes(described.config)
    expected = required | optional
    for name, spec in tensors.items():
        if name not in expected:
            raise WeightsError(
                f"{file} holds {name!r}, which doesn't go with {described.file}: use a set whose "
                "files belong together"
            )
        if spec.dtype not in ITEM_BYTES:
            served = ", ".join(ITEM_BYTES)
            raise WeightsError(f"{file} has {name} of {spec.dtype}: {served} are served")
    for name in required:
        if name not in tensors:
            raise WeightsError(f"{file} lacks {name}: replace it")
    if optional and len(tensors.keys() & optional) == 1:
        raise WeightsError(f"{file} has one of {' and '.join(optional)} alone: replace it")
    _check_shapes(file, described, tensors, expected)


def _check_shapes(
    file: Path,
    described: Described,
    tensors: Mapping[str, Spec],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    stored_heads = None
    if isinstance(described.config, LorsaConfig):
        stored_heads = _stored_heads(file, described.config, tensors["W_Q"])
    for name, spec in tensors.items():
        shape = expected[name]
        if name in _OF_QK_HEADS and stored_heads is not None:
            shape = (stored_heads, *shape[1:])
        if spec.shape != shape:
            raise WeightsError(
                f"{file} has {name} of {sides(spec.shape)}, and by {described.file} it has to be "
                f"{sides(shape)}: replace the one that is wrong"
            )


def _stored_heads(file: Path, config: LorsaConfig, stored: Spec) -> int:
    """QK heads of the file: each is then repeated, so that there are as many as configured."""
    n_heads = stored.shape[0] if stored.shape else 0
    if n_heads < 1 or config.n_qk_heads % n_heads:
        raise WeightsError(
            f"{file} has W_Q of {n_heads} heads, which can't be repeated to make the configured "
            f"n_qk_heads, {config.n_qk_heads}: replace the one that is wrong"
        )
    return n_heads


def _shapes(
    config: TranscoderConfig | LorsaConfig,
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The tensors that a module has to have, and those that it may have, with their shapes."""
    width, n_features = config.d_model, config.d_sae
    required: dict[str, tuple[int, ...]] = {}
    optional: dict[str, tuple[int, ...]] = {}
    if isinstance(config, TranscoderConfig):
        encoders = ["", "_glu"] if config.use_glu_encoder else [""]
        for suffix in encoders:
            required |= {f"W_E{suffix}": (width, n_features), f"b_E{suffix}": (n_features,)}
        required["W_D"] = (n_features, width)
    else:
        heads, of_head = config.n_qk_heads, config.d_qk_head
        for side in "QK":
            required |= {f"W_{side}": (heads, width, of_head), f"b_{side}": (heads, of_head)}
            if config.use_post_qk_ln:
                required[f"ln_{side.lower()}.w"] = (heads, of_head)
        required |= dict.fromkeys(("W_V", "W_O"), (n_features, width)) | {"b_V": (n_features,)}
        if config.rotary_dimensions is not None:
            table = (config.n_ctx, config.rotary_dimensions)
            optional = dict.fromkeys(("rotary_cos", "rotary_sin"), table)
    if config.use_decoder_bias:
        required["b_D"] = (width,)
    if config.act_fn == "jumprelu":
        required[THRESHOLD] = (n_features,)
    return required, optional
