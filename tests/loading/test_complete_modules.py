"""A complete set's modules from their files: every tensor, in each dtype, eager and lazy."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from loading import WeightsError
from loading.complete_config import LorsaConfig
from loading.complete_files import Module, read_module
from loading.complete_modules import Placement, read_lorsa, read_transcoder, rotary_tables
from tests.support.complete_sets import (
    Tensors,
    lorsa_config,
    tensors_for,
    transcoder_config,
    write_module,
)
from tests.support.cuda_devices import DEVICES, cuda_device

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _placement(
    dtype: torch.dtype = torch.float32, *, lazy: bool = False, device: str = "cpu"
) -> Placement:
    return Placement(torch.device(device), dtype, lazy)


def _module(tmp_path: Path, config: dict[str, Any], tensors: Tensors | None = None) -> Module[Any]:
    return read_module(write_module(tmp_path, config, tensors))


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize("stored", _DTYPES, ids=str)
@pytest.mark.parametrize("wanted", _DTYPES, ids=str)
def test_a_transcoder_has_the_values_of_its_file(
    tmp_path: Path, stored: torch.dtype, wanted: torch.dtype, lazy: bool
) -> None:
    config = transcoder_config(use_glu_encoder=True)
    tensors = tensors_for(config, dtype=stored)
    module = _module(tmp_path, config, tensors)
    transcoder = read_transcoder(module, _placement(wanted, lazy=lazy))
    cast = {name: tensor.to(wanted) for name, tensor in tensors.items()}
    assert torch.equal(transcoder.W_E, cast["W_E"].T)
    assert transcoder.W_E.is_contiguous()
    assert transcoder.W_E_glu is not None
    assert transcoder.b_E_glu is not None
    assert torch.equal(transcoder.W_E_glu, cast["W_E_glu"].T)
    assert torch.equal(transcoder.b_E, cast["b_E"])
    assert torch.equal(transcoder.b_E_glu, cast["b_E_glu"])
    assert torch.equal(transcoder.b_D, cast["b_D"])
    features = torch.tensor([31, 0, 7, 7])
    assert torch.equal(transcoder.decoder.rows(features), cast["W_D"][features])
    assert transcoder.decoder.rows(features[:0]).shape == (0, 16)
    assert transcoder.decoder.norms is not None
    assert transcoder.decoder.norms.dtype == torch.float32
    torch.testing.assert_close(transcoder.decoder.norms, cast["W_D"].float().norm(dim=1))
    assert {transcoder.W_E.dtype, transcoder.decoder.rows(features).dtype} == {wanted}


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
def test_a_lorsa_has_the_values_of_its_file(tmp_path: Path, dtype: torch.dtype, lazy: bool) -> None:
    config = lorsa_config(attn_scale=1.7, eps=1e-3)
    tensors = tensors_for(config, dtype=dtype)
    lorsa = read_lorsa(_module(tmp_path, config, tensors), _placement(dtype, lazy=lazy))
    for name in ("W_Q", "W_K", "b_Q", "b_K", "W_V", "b_V", "b_D"):
        assert torch.equal(getattr(lorsa, name), tensors[name]), name
    assert lorsa.q_gain is not None
    assert lorsa.k_gain is not None
    assert lorsa.rotary is not None
    assert torch.equal(lorsa.q_gain, tensors["ln_q.w"])
    assert torch.equal(lorsa.k_gain, tensors["ln_k.w"])
    assert torch.equal(lorsa.rotary.cos, tensors["rotary_cos"].float())
    assert torch.equal(lorsa.rotary.sin, tensors["rotary_sin"].float())
    assert not lorsa.rotary.adjacent_pairs
    features = torch.tensor([3, 30, 3])
    assert torch.equal(lorsa.decoder.rows(features), tensors["W_O"][features])
    assert (lorsa.attn_scale, lorsa.eps, lorsa.n_ctx) == (1.7, 1e-3, 24)


def test_fewer_heads_in_the_file_are_repeated_one_after_another(tmp_path: Path) -> None:
    config = lorsa_config()
    tensors = tensors_for(config, stored_heads=2)
    lorsa = read_lorsa(_module(tmp_path, config, tensors), _placement())
    for name, tensor in {"W_Q": lorsa.W_Q, "b_K": lorsa.b_K, "ln_k.w": lorsa.k_gain}.items():
        assert tensor is not None
        assert torch.equal(tensor, tensors[name][[0, 0, 1, 1]]), name


def test_a_module_without_options_has_none_of_them(tmp_path: Path) -> None:
    config = lorsa_config(
        use_post_qk_ln=False,
        positional_embedding_type="none",
        use_decoder_bias=False,
        sparsity_include_decoder_norm=False,
        act_fn="relu",
        attn_scale=None,
    )
    lorsa = read_lorsa(_module(tmp_path, config), _placement())
    assert (lorsa.q_gain, lorsa.k_gain, lorsa.rotary, lorsa.decoder.norms) == (None,) * 4
    assert torch.equal(lorsa.b_D, torch.zeros(16))
    assert (lorsa.activation.name, lorsa.activation.threshold) == ("relu", None)
    assert lorsa.attn_scale == 8**0.5


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
def test_a_threshold_is_taken_out_of_its_logarithm_without_rounding(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    config = transcoder_config(act_fn="jumprelu")
    tensors = tensors_for(config, dtype=dtype)
    activation = read_transcoder(_module(tmp_path, config, tensors), _placement(dtype)).activation
    stored = tensors["activation_function.log_jumprelu_threshold"]
    assert activation.name == "jumprelu"
    assert activation.threshold is not None
    assert torch.equal(activation.threshold, stored.float().exp())


def test_rotary_tables_are_computed_where_the_file_has_none(tmp_path: Path) -> None:
    for adjacent in (True, False):
        config = lorsa_config(rotary_adjacent_pairs=adjacent, rotary_base=10_000, rotary_dim=4)
        tensors = tensors_for(config, tables=False)
        folder = tmp_path / str(adjacent)
        rotary = read_lorsa(_module(folder, config, tensors), _placement()).rotary
        assert rotary is not None
        assert rotary.adjacent_pairs is adjacent
        # At position 3 the first pair turns by 3, the second by 3 / 10000^(1/2).
        angles = torch.tensor([3.0, 3.0, 0.03, 0.03] if adjacent else [3.0, 0.03, 3.0, 0.03])
        torch.testing.assert_close(rotary.cos[3], angles.cos())
        torch.testing.assert_close(rotary.sin[3], angles.sin())


@pytest.mark.parametrize("base", [10_000, 1_000_000])
@pytest.mark.parametrize("adjacent", [True, False], ids=["adjacent", "halves"])
def test_computed_rotary_tables_are_llamascopiums(
    tmp_path: Path, adjacent: bool, base: int
) -> None:
    models = pytest.importorskip("llamascopium.models.lorsa")
    keys = lorsa_config(
        rotary_adjacent_pairs=adjacent, rotary_base=base, d_qk_head=128, rotary_dim=128, n_ctx=2048
    )
    theirs = models.LowRankSparseAttention(models.LorsaConfig.model_validate(keys))
    cos, sin = rotary_tables(LorsaConfig.model_validate(keys), 128)
    assert torch.equal(cos, theirs.rotary_cos)
    assert torch.equal(sin, theirs.rotary_sin)


@pytest.mark.parametrize("act_fn", ["relu", "topk", "jumprelu"])
def test_modules_that_llamascopium_saved_are_read(tmp_path: Path, act_fn: str) -> None:
    models = pytest.importorskip("llamascopium.models")
    changes: dict[str, Any] = {"act_fn": act_fn, "use_glu_encoder": True}
    kinds: list[tuple[Any, Any, dict[str, Any]]] = [
        (models.lorsa.LowRankSparseAttention, models.lorsa.LorsaConfig, lorsa_config(**changes)),
        (models.sae.SparseAutoEncoder, models.sae.SAEConfig, transcoder_config(**changes)),
    ]
    for model_class, config_class, keys in kinds:
        theirs = model_class(config_class.model_validate(keys))
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter)
        folder = tmp_path / keys["sae_type"]
        theirs.save_pretrained(folder)
        theirs.cfg.save_hyperparameters(folder)
        module = read_module(folder)
        if module.kind == "lorsa":
            lorsa = read_lorsa(module, _placement())
            assert lorsa.rotary is not None
            assert torch.equal(lorsa.W_K, theirs.W_K)
            assert torch.equal(lorsa.rotary.sin, theirs.rotary_sin)
        else:
            transcoder = read_transcoder(module, _placement())
            assert torch.equal(transcoder.W_E, theirs.W_E.T)
            assert transcoder.decoder.norms is not None
            assert torch.equal(transcoder.decoder.norms, theirs.decoder_norm())


def test_a_lazy_decoder_reads_only_the_rows_asked_for(tmp_path: Path) -> None:
    """In a process of its own: the growth of its memory is far below the decoder's 64 MB."""
    config = transcoder_config(d_model=256, expansion_factor=256, top_k=4)
    write_module(tmp_path, config, tensors_for(config))
    program = """
import resource, sys
from pathlib import Path
import torch
from loading.complete_files import read_module
from loading.complete_modules import Placement, StoredDecoder
module = read_module(Path(sys.argv[1]))
placement = Placement(torch.device("cpu"), torch.float32, True)
stored = StoredDecoder(module.weights, "W_D", placement)
stored.rows(torch.tensor([0]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stored.rows(torch.arange(0, 65536, 1024))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(grown.stdout) < 16_000  # kilobytes


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
def test_modules_are_read_onto_a_cuda_device(tmp_path: Path, lazy: bool, kind: str) -> None:
    config, other = lorsa_config(use_decoder_bias=False), transcoder_config(act_fn="jumprelu")
    tensors = tensors_for(config, stored_heads=2, tables=False)
    with cuda_device(kind):
        placement = _placement(torch.bfloat16, lazy=lazy, device="cuda:0")
        lorsa = read_lorsa(_module(tmp_path / "lorsa", config, tensors), placement)
        transcoder = read_transcoder(_module(tmp_path / "transcoder", other), placement)
        assert lorsa.rotary is not None
        assert transcoder.activation.threshold is not None
        assert lorsa.decoder.norms is not None
        assert lorsa.decoder.norms.device.type == "cuda"
        features = torch.tensor([5, 1], device="cuda:0")
        rows = lorsa.decoder.rows(features)
        on_device = [lorsa.W_Q, lorsa.b_D, lorsa.rotary.cos, rows, transcoder.W_E]
        on_device.append(transcoder.activation.threshold)
        assert {tensor.device.type for tensor in on_device} == {"cuda"}
        assert torch.equal(rows.cpu(), tensors["W_O"].bfloat16()[[5, 1]])


def test_a_decoder_with_nan_is_named(tmp_path: Path) -> None:
    config = transcoder_config(sparsity_include_decoder_norm=False)
    tensors = tensors_for(config)
    tensors["W_D"][3, 5] = float("nan")
    with pytest.raises(WeightsError, match=r"sae_weights\.safetensors holds NaN in W_D"):
        read_transcoder(_module(tmp_path, config, tensors), _placement())


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
def test_weights_that_are_cut_off_are_named(tmp_path: Path, lazy: bool) -> None:
    module = _module(tmp_path, transcoder_config())
    file = module.weights
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"sae_weights\.safetensors is damaged"):
        read_transcoder(module, _placement(lazy=lazy))
