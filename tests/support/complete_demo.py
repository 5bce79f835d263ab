"""The demo's complete set in llamascopium's files, and the cases of it that are committed.

The demo has its Lorsas in those files, but for what can be computed, and its transcoders in those
of circuit-tracer. Here are both as llamascopium reads them. The conversion is written out apart
from the loader's, so that one checks the other.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from loading.registry import DEMO
from tests.support.complete_cases import Case, Folders

_DEMO = Path(DEMO.model).parent
_LORSAS = _DEMO / "complete" / "lorsa" / "5x" / "k10"

DEMO_CASES = {
    f"demo-{name}": Case("demo", prompt, batch_size=16, node_threshold=0.8, edge_threshold=0.9)
    for name, prompt in (
        ("french", "Michael Jordan joue au"),
        ("spanish", "Lionel Messi juega al"),
    )
}


def write_demo(directory: Path) -> Folders:
    """Write the modules below a directory; the model's folder is the demo's own."""
    folders = Folders(Path(DEMO.model), directory / "demo", expansion="5x", top_k="k10")
    gains = load_file(folders.model / "model.safetensors")
    for source in sorted(_LORSAS.iterdir()):
        config = json.loads((source / "config.json").read_text())
        layer = int(config["hook_point_in"].split(".")[1])
        _write(folders.module("lorsa", layer), config, _with_buffers(source, config))
        gain = gains[f"model.layers.{layer}.post_attention_layernorm.weight"]
        _write(folders.module("transcoder", layer), *_transcoder(layer, gain, config))
    return folders


def _write(folder: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")


def _with_buffers(source: Path, config: dict[str, int]) -> dict[str, torch.Tensor]:
    """A Lorsa's tensors with the mask and the tables that llamascopium asks a file for."""
    n_ctx, half = config["n_ctx"], config["rotary_dim"] // 2
    frequency = config["rotary_base"] ** (torch.arange(half, dtype=torch.float32) / half)
    angles = torch.arange(n_ctx, dtype=torch.float32)[:, None] / torch.cat([frequency, frequency])
    return {
        **load_file(source / "sae_weights.safetensors"),
        "mask": torch.ones(n_ctx, n_ctx).tril().bool(),
        "IGNORE": torch.tensor(-torch.inf),
        "rotary_cos": angles.cos(),
        "rotary_sin": angles.sin(),
    }


def _transcoder(
    layer: int, gain: torch.Tensor, lorsa: dict[str, object]
) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """A transcoder that reads behind the norm's gain as one that reads before it."""
    [file] = (_DEMO / "transcoders").glob(f"*layer_{layer}.safetensors")
    own = {name: tensor.float() for name, tensor in load_file(file).items()}
    threshold = own["activation_function.threshold"].expand(len(own["b_enc"]))
    shared = ("norm_activation", "use_triton_kernel", "sparsity_threshold_for_triton_spmm_kernel")
    config = {
        "sae_type": "sae",
        "d_model": len(gain),
        "expansion_factor": len(own["b_enc"]) / len(gain),
        "use_decoder_bias": True,
        "act_fn": "jumprelu",
        "top_k": 50,
        "sparsity_include_decoder_norm": False,
        "jumprelu_threshold_window": 2.0,
        "use_glu_encoder": False,
        "hook_point_in": f"blocks.{layer}.ln2.hook_normalized",
        "hook_point_out": f"blocks.{layer}.hook_mlp_out",
        **{key: lorsa[key] for key in shared if key in lorsa},
    }
    return config, {
        "W_E": (own["W_enc"] * gain).T.contiguous(),
        "b_E": own["b_enc"],
        "W_D": own["W_dec"],
        "b_D": own["b_dec"],
        "activation_function.log_jumprelu_threshold": threshold.log().contiguous(),
    }
