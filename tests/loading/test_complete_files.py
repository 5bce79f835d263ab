"""A module's files are checked by their headers before any tensor is read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from loading import WeightsError
from loading.complete_files import read_module
from tests.support.complete_sets import lorsa_config, tensors_for, transcoder_config, write_module


def test_a_modules_files_are_found_and_described(tmp_path: Path) -> None:
    module = read_module(write_module(tmp_path, lorsa_config(5)))
    assert (module.kind, module.layer) == ("lorsa", 5)
    assert module.weights == tmp_path / "sae_weights.safetensors"
    assert "mask" not in module.tensors
    assert "W_V" in module.tensors


@pytest.mark.parametrize("stem", ["pruned", "final"])
def test_weights_may_be_a_checkpoint_of_the_training(tmp_path: Path, stem: str) -> None:
    name = f"checkpoints/{stem}.safetensors"
    module = read_module(write_module(tmp_path, transcoder_config(), weights=name))
    assert module.weights == tmp_path / name


@pytest.mark.parametrize("name", ["sae_weights.pt", "checkpoints/final.pt"])
def test_a_pickle_is_refused_and_never_opened(tmp_path: Path, name: str) -> None:
    write_module(tmp_path, transcoder_config()).joinpath("sae_weights.safetensors").unlink()
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"no pickle at all")
    with pytest.raises(WeightsError, match=r"\.pt: weights are read from safetensors alone"):
        read_module(tmp_path)


def test_a_distributed_checkpoint_is_refused(tmp_path: Path) -> None:
    write_module(tmp_path, transcoder_config()).joinpath("sae_weights.safetensors").unlink()
    (tmp_path / "sae_weights.dcp").mkdir()
    with pytest.raises(WeightsError, match=r"sae_weights\.dcp: weights are read from safetensors"):
        read_module(tmp_path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    write_module(tmp_path, transcoder_config()).joinpath("sae_weights.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"holds no sae_weights\.safetensors"):
        read_module(tmp_path)


@pytest.mark.parametrize(
    ("config", "changes", "named"),
    [
        (transcoder_config(), {"W_E": None}, "lacks W_E"),
        (transcoder_config(), {"b_D": None}, "lacks b_D"),
        (transcoder_config(), {"b_D": torch.zeros(15)}, "b_D of 15"),
        (transcoder_config(), {"W_E": torch.zeros(32, 16)}, "W_E of 32 x 16"),
        (transcoder_config(use_glu_encoder=True), {"W_E_glu": None}, "lacks W_E_glu"),
        (transcoder_config(), {"W_E_glu": torch.zeros(16, 32)}, "holds 'W_E_glu'"),
        (transcoder_config(use_decoder_bias=False), {"b_D": torch.zeros(16)}, "holds 'b_D'"),
        (
            transcoder_config(act_fn="jumprelu"),
            {"activation_function.log_jumprelu_threshold": None},
            "lacks activation_function.log_jumprelu_threshold",
        ),
        (
            transcoder_config(),
            {"activation_function.log_jumprelu_threshold": torch.zeros(32)},
            "holds 'activation_function.log_jumprelu_threshold'",
        ),
        (transcoder_config(), {"W_skip": torch.zeros(16, 16)}, "holds 'W_skip'"),
        (transcoder_config(), {"W_D": torch.zeros(32, 16).to(torch.float8_e4m3fn)}, "F8_E4M3"),
        (lorsa_config(), {"W_Q": torch.zeros(3, 16, 8)}, "W_Q of 3 heads"),
        (lorsa_config(), {"W_K": torch.zeros(2, 16, 8)}, "W_K of 2 x 16 x 8"),
        (lorsa_config(), {"W_Q": torch.zeros(0, 16, 8)}, "W_Q of 0 heads"),
        (lorsa_config(), {"ln_q.w": None}, "lacks ln_q.w"),
        (lorsa_config(use_post_qk_ln=False), {"ln_q.w": torch.zeros(4, 8)}, "holds 'ln_q.w'"),
        (lorsa_config(), {"rotary_sin": None}, "one of rotary_cos and rotary_sin alone"),
        (lorsa_config(), {"rotary_cos": torch.zeros(12, 8)}, "rotary_cos of 12 x 8"),
        (lorsa_config(), {"W_O": torch.zeros(16, 32)}, "W_O of 16 x 32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_do_not_go_with_the_configuration_are_named(
    tmp_path: Path,
    config: dict[str, Any],
    changes: dict[str, torch.Tensor | None],
    named: str,
) -> None:
    tensors: dict[str, torch.Tensor | None] = {**tensors_for(config), **changes}
    held = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    write_module(tmp_path, config, held)
    with pytest.raises(WeightsError, match=named) as caught:
        read_module(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_file_that_is_no_safetensors_file_is_named(tmp_path: Path) -> None:
    write_module(tmp_path, transcoder_config())
    (tmp_path / "sae_weights.safetensors").write_bytes(b"version https://git-lfs.github.com/spec")
    with pytest.raises(WeightsError, match=r"sae_weights\.safetensors is damaged: replace it"):
        read_module(tmp_path)
