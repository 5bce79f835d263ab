"""A checkpoint's tensors under the names of the Hugging Face model that it was saved from.

TransformerLens's weight converters read a Hugging Face model's attributes and nothing else:
`model.layers[3].mlp.up_proj.weight`. A checkpoint has those attributes and reads each from the
safetensors files when a converter asks for it, onto the device and into the dtype wanted. No
Hugging Face model is built, and no tensor is in memory twice.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from loading import WeightsMismatchError
from loading.model_folder import INDEX, SINGLE_FILE, read_index
from loading.tensor_files import read_tensor, tensors_in

# How a multimodal checkpoint's names differ from those of its language model alone, `model.layers`:
# `model.language_model.layers` or `language_model.model.layers`.
_TEXT_MODEL = re.compile(r"(?<=^model\.)language_model\.|^language_model\.")

_EMBEDDINGS = {"GPT2LMHeadModel": "transformer.wte.weight"}

# Tensors that are no part of a language model: parts for images, and buffers that are computed.
_ELSEWHERE = re.compile(
    r"(model\.)?(vision_tower|multi_modal_projector)\..*|(.*\.)?attn\.(bias|masked_bias)"
    r"|.*rotary_emb\.inv_freq"
)

_REMEDY = (
    "They and config.json don't belong together, or a file is damaged: download the model anew"
)


def weight_files(directory: Path) -> dict[Path, set[str]]:
    """The safetensors files of a model's directory, each with the tensors that an index names.

    A single file is taken before those of an index.

    Raises:
        FileNotFoundError: there are none, or one that the index names is missing.
        WeightsError: the index can't be read.
    """
    single, index = directory / SINGLE_FILE, directory / INDEX
    files: dict[Path, set[str]] = {}
    if single.is_file() or not index.is_file():
        files[single] = set()
    else:
        for tensor, name in read_index(directory).items():
            files.setdefault(directory / name, set()).add(tensor)
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path.name} in {directory}: weights are read from safetensors"
            )
    return files


def open_checkpoint(
    directory: Path, config: Any, *, device: torch.device, dtype: torch.dtype
) -> "Part":
    """The checkpoint of a model's directory; its tensors are read when they are asked for.

    On a CPU those that are stored in `dtype` are the file's own pages, not a copy.

    Args:
        config: the model's `transformers` configuration.

    Raises:
        FileNotFoundError: the directory lacks safetensors files.
        WeightsError: a file is damaged.
    """
    stored = {name: path for path in weight_files(directory) for name in tensors_in(path)}
    read: dict[str, torch.Tensor] = {}

    def tensor(name: str) -> torch.Tensor:
        # A tensor that has two names in the model is read once, and so shared.
        if name not in read:
            read[name] = read_tensor(stored[name], name, device=str(device), dtype=dtype)
        return read[name]

    names = _model_names(stored, config)
    return Part(tensor, names, config=config, stored=stored.keys(), read=read.keys())


def absent(directory: Path, *, beside_index: Iterable[str] = ()) -> list[str]:
    """The names of tensors that no file has, of those in the index and in `beside_index`.

    Raises:
        FileNotFoundError: the directory lacks safetensors files.
        WeightsError: a file is damaged.
    """
    files = weight_files(directory)
    return sorted(set(beside_index).union(*files.values()).difference(*map(tensors_in, files)))


def of_the_language_model(names: Iterable[str]) -> list[str]:
    """Those of the tensors that are part of a language model."""
    return [name for name in names if not _ELSEWHERE.fullmatch(name)]


def unread(names: Iterable[str], *, tied: bool) -> list[str]:
    """Of the tensors that a model did not read, those that it should have read.

    Args:
        tied: whether the embeddings are the unembedding too; a stored unembedding isn't read then.
    """
    left = of_the_language_model(names)
    return [name for name in left if not (tied and name.endswith("lm_head.weight"))]


def check_weights(
    *, missing: Iterable[str] = (), misshapen: Iterable[str] = (), unread: Iterable[str] = ()
) -> None:
    """Raise WeightsMismatchError that names these weights, unless none is given.

    Args:
        missing: those that the model has and the checkpoint lacks.
        misshapen: those of another shape.
        unread: those that the checkpoint has and the model lacks.
    """
    faults = {
        "lack": missing,
        "have another shape than the model's": misshapen,
        "hold what the model doesn't have:": unread,
    }
    clauses = [f"{verb} {_first(list(names))}" for verb, names in faults.items() if names]
    if clauses:
        raise WeightsMismatchError(f"the weights {'; they '.join(clauses)}. {_REMEDY}")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _model_names(stored: Iterable[str], config: Any) -> dict[str, str]:
    """The names of the model's tensors, each with its name in the files."""
    architecture = (config.architectures or ["unknown"])[0]
    names = {_TEXT_MODEL.sub("", name): name for name in stored}
    if architecture == "GPT2LMHeadModel" and not any(n.startswith("transformer.") for n in names):
        names = {f"transformer.{name}": stored_as for name, stored_as in names.items()}
    embeddings = _EMBEDDINGS.get(architecture, "model.embed_tokens.weight")
    if config.tie_word_embeddings and embeddings in names:
        names["lm_head.weight"] = names[embeddings]
    return names


class MissingTensorError(AttributeError, WeightsMismatchError):
    """The checkpoint lacks a tensor. An AttributeError, so that converters can use `hasattr`."""


class Part:
    """A part of the model, whose attributes and items are its parts or tensors."""

    def __init__(
        self,
        tensor: Callable[[str], torch.Tensor],
        names: Mapping[str, str],
        path: str = "",
        **attributes: Any,
    ) -> None:
        self._tensor = tensor
        self._names = names  # below this part -> in the files
        self._path = path
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            return self._tensor(self._names[name])
        below = {
            n.removeprefix(f"{name}."): s
            for n, s in self._names.items()
            if n.startswith(f"{name}.")
        }
        if not below:
            raise MissingTensorError(
                f"the weights lack {self._path}{name}, and have {', '.join(self._names)} beside "
                f"it. {_REMEDY}"
            )
        part = Part(self._tensor, below, f"{self._path}{name}.")
        setattr(self, name, part)
        return part

    def __getitem__(self, index: int) -> Any:
        return getattr(self, str(index))

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """None: nothing here asks for gradients."""
        return iter(())
