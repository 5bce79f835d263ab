"""Random complete sets whose decoders are fitted to a model, so that they explain some of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from attribution.complete.modules import CompleteModel, Lorsa
from loading.loaded_model import LoadedModel
from serving import fitness

_TEXTS, _LENGTH, _RIDGE = 8, 24, 0.1


@torch.no_grad()
def fit_set(loaded: LoadedModel, root: Path) -> None:
    """Write other decoders to the set's files, wherever below `root` they are.

    Args:
        loaded: the model with the set as it is, in float32.
    """
    model: CompleteModel = loaded.model
    random = torch.Generator().manual_seed(3)
    texts = torch.randint(0, loaded.d_vocab, (_TEXTS, _LENGTH), generator=random)
    words = fitness._tokens(loaded)  # so that the set explains the text that it is judged by
    texts[: _TEXTS // 2] = torch.tensor((words * _LENGTH)[:_LENGTH])
    _, seen = model.language_model.run_with_cache(texts)
    for layer in range(model.cfg.n_layers):
        for kind, norm, output in (
            ("lorsa", "ln1", "hook_attn_out"),
            ("transcoder", "ln2", "hook_mlp_out"),
        ):
            module = (model.lorsas if kind == "lorsa" else model.transcoders)[layer]
            reads = seen[f"blocks.{layer}.{norm}.hook_normalized"]
            activations = torch.cat([_activations(module, x) for x in reads])
            outputs = seen[f"blocks.{layer}.{output}"].flatten(0, 1)
            [folder] = root.rglob(f"layer{layer}_{kind}_*")
            name = "W_O" if kind == "lorsa" else "W_D"
            _write(folder / "sae_weights.safetensors", name, *_fitted(activations, outputs))


def _activations(module: Any, x: Tensor) -> Tensor:
    """Activations when all decoder vectors have the same norm, as the fitted ones do."""
    plain = replace(module, activation=replace(module.activation, times_decoder_norm=False))
    return plain.encode(x, plain.attend(x)) if isinstance(plain, Lorsa) else plain.encode(x)


def _fitted(activations: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Decoder vectors (d_sae, d_model) of one norm, and a bias."""
    bias = outputs.mean(0)
    gram = activations.T @ activations
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    free = torch.linalg.solve(gram, activations.T @ (outputs - bias))
    unit = free / free.norm(dim=1, keepdim=True).clamp_min(1e-12)
    unit[unit.norm(dim=1) < 0.5] = outputs.shape[1] ** -0.5
    sums = activations @ unit
    return unit * ((sums * (outputs - bias)).sum() / sums.square().sum()), bias


def _write(path: Path, name: str, decoder: Tensor, bias: Tensor) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    dtype = tensors[name].dtype
    path.unlink()  # which may be a link to a file that others share
    save_file(
        {**tensors, name: decoder.to(dtype).contiguous(), "b_D": bias.to(dtype)}, path, metadata
    )
