"""Lorsas (low-rank sparse attention) of the demo model: what they compute, and their files.

The layout is llamascopium's: a folder a layer with config.json and sae_weights.safetensors.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

# The folder that holds lorsa/<expansion>/<top-k>/layer<l>_lorsa_<expansion>_<top-k>.
COMMITTED = Path(__file__).parent / "complete"


@dataclass(frozen=True)
class LorsaShape:
    """A Lorsa's sizes. Consecutive features share a pattern: `n_features / n_patterns` each."""

    d_model: int
    n_features: int
    top_k: int
    n_patterns: int
    d_head: int
    n_context: int
    rotary_base: float
    eps: float

    @property
    def expansion(self) -> int:
        return self.n_features // self.d_model


class Lorsa(nn.Module):
    """Attention made of features, each of which reads one direction and writes one direction.

    Parameters bear the names of llamascopium's files.
    """

    def __init__(self, shape: LorsaShape) -> None:
        super().__init__()
        self.shape = shape
        queries = (shape.n_patterns, shape.d_model, shape.d_head)
        per_pattern = (shape.n_patterns, shape.d_head)
        features = (shape.n_features, shape.d_model)
        self.W_Q, self.W_K = (nn.Parameter(torch.zeros(queries)) for _ in range(2))
        self.b_Q, self.b_K = (nn.Parameter(torch.zeros(per_pattern)) for _ in range(2))
        self.W_V, self.W_O = (nn.Parameter(torch.zeros(features)) for _ in range(2))
        self.b_V = nn.Parameter(torch.zeros(shape.n_features))
        self.b_D = nn.Parameter(torch.zeros(shape.d_model))
        self.ln_q, self.ln_k = (
            nn.ParameterDict({"w": nn.Parameter(torch.ones(per_pattern))}) for _ in range(2)
        )

    def patterns(self, inputs: torch.Tensor) -> torch.Tensor:
        """How much each position attends to each: (batch, pattern, position, position).

        Args:
            inputs: (batch, position, d_model), divided by their scale but without the norm's gain.
        """
        queries = self._rotated(inputs, self.W_Q, self.b_Q, self.ln_q["w"])
        keys = self._rotated(inputs, self.W_K, self.b_K, self.ln_k["w"])
        scores = queries @ keys.transpose(-1, -2) / self.shape.d_head**0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -torch.inf).softmax(-1)

    def _rotated(
        self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, gain: torch.Tensor
    ) -> torch.Tensor:
        """Queries or keys after their norm and rotation: (batch, pattern, position, d_head)."""
        projected = torch.einsum("bpd,hdq->bhpq", inputs, weight) + bias[:, None]
        scale = (projected.square().mean(-1, keepdim=True) + self.shape.eps).sqrt()
        normed = projected / scale * gain[:, None]
        half = self.shape.d_head // 2
        periods = self.shape.rotary_base ** (torch.arange(half) / half)
        angles = (torch.arange(inputs.shape[1])[:, None] / periods).repeat(1, 2)
        first, second = normed[..., :half], normed[..., half:]
        return normed * angles.cos() + torch.cat((-second, first), -1) * angles.sin()

    def attended(self, inputs: torch.Tensor) -> torch.Tensor:
        """The mean input that each pattern sees: (batch, position, pattern, d_model)."""
        return torch.einsum("bhqk,bkd->bqhd", self.patterns(inputs), inputs)

    def before_top_k(self, attended: torch.Tensor) -> torch.Tensor:
        """What each feature reads, from flat (token, pattern, d_model) to (token, feature)."""
        by_pattern = self.W_V.unflatten(0, (self.shape.n_patterns, -1))
        read = torch.bmm(attended.transpose(0, 1), by_pattern.transpose(1, 2))
        return read.transpose(0, 1).flatten(1) + self.b_V

    def activate(self, before: torch.Tensor) -> torch.Tensor:
        """Keep the `top_k` largest of each token, if they are positive."""
        return keep_largest(before, self.shape.top_k)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Activations of the features: (batch, position, feature)."""
        flat = self.attended(inputs).flatten(0, 1)
        return self.activate(self.before_top_k(flat)).unflatten(0, inputs.shape[:2])

    def decode(self, activations: torch.Tensor) -> torch.Tensor:
        """What the features add to the residual stream."""
        return activations @ self.W_O + self.b_D

    def save(self, root: Path, layer: int) -> Path:
        """Write both files of a layer below `root` and return their folder."""
        directory = folder(root, layer, self.shape.expansion, self.shape.top_k)
        directory.mkdir(parents=True, exist_ok=True)
        config = json.dumps(self._config(layer), indent=2)
        (directory / "config.json").write_text(config + "\n")
        weights = {key: value.contiguous() for key, value in self.state_dict().items()}
        save_file(weights, directory / "sae_weights.safetensors")
        return directory

    def _config(self, layer: int) -> dict[str, object]:
        shape = self.shape
        return {
            "sae_type": "lorsa",
            "d_model": shape.d_model,
            "expansion_factor": shape.expansion,
            "act_fn": "topk",
            "top_k": shape.top_k,
            "use_decoder_bias": True,
            "sparsity_include_decoder_norm": False,
            "norm_activation": "inference",
            "hook_point_in": f"blocks.{layer}.ln1.hook_normalized",
            "hook_point_out": f"blocks.{layer}.hook_attn_out",
            "n_qk_heads": shape.n_patterns,
            "d_qk_head": shape.d_head,
            "n_ctx": shape.n_context,
            "attn_scale": shape.d_head**0.5,
            "use_post_qk_ln": True,
            "normalization_type": "RMS",
            "eps": shape.eps,
            "positional_embedding_type": "rotary",
            "rotary_dim": shape.d_head,
            "rotary_base": int(shape.rotary_base),
            "rotary_adjacent_pairs": False,
            "rotary_scale": 1,
            "use_NTK_by_parts_rope": False,
        }


def keep_largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Zero all but the `count` largest positive values of each row."""
    top = functional.relu(values).topk(count, dim=1)
    return torch.zeros_like(values).scatter(1, top.indices, top.values)


def folder(root: Path, layer: int, expansion: int, top_k: int) -> Path:
    """Where a layer's files lie, named as Llama Scope 2 names them."""
    size = f"{expansion}x", f"k{top_k}"
    return root.joinpath("lorsa", *size, f"layer{layer}_lorsa_{'_'.join(size)}")


def load(directory: Path) -> Lorsa:
    """The Lorsa of one folder that `Lorsa.save` wrote."""
    config = json.loads((directory / "config.json").read_text())
    shape = LorsaShape(
        d_model=config["d_model"],
        n_features=config["d_model"] * config["expansion_factor"],
        top_k=config["top_k"],
        n_patterns=config["n_qk_heads"],
        d_head=config["d_qk_head"],
        n_context=config["n_ctx"],
        rotary_base=config["rotary_base"],
        eps=config["eps"],
    )
    lorsa = Lorsa(shape)
    lorsa.load_state_dict(load_file(directory / "sae_weights.safetensors"))
    return lorsa.requires_grad_(False)


def load_all(root: Path) -> list[Lorsa]:
    """The Lorsas below `root`, from the first layer to the last."""
    return [load(directory) for directory in sorted(root.glob("lorsa/*/*/layer*"))]


def load_committed() -> list[Lorsa]:
    """The demo's Lorsas, from the first layer to the last."""
    return load_all(COMMITTED)
