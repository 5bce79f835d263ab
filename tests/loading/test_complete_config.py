"""The configuration of a complete set's module decides, and what isn't served is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from loading import WeightsError
from loading.complete_config import Described, LorsaConfig, TranscoderConfig, read_module_config
from tests.support.complete_sets import lorsa_config, transcoder_config


def _read(tmp_path: Path, config: dict[str, Any]) -> Described:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    return read_module_config(file)


def test_the_kind_and_the_layer_are_those_of_the_configuration(tmp_path: Path) -> None:
    assert (_read(tmp_path, transcoder_config(3)).kind, 3) == ("transcoder", 3)
    described = _read(tmp_path, lorsa_config(27))
    assert (described.kind, described.layer) == ("lorsa", 27)


def test_keys_that_an_older_writer_left_out_have_llamascopiums_defaults(tmp_path: Path) -> None:
    needed = {
        *("sae_type", "d_model", "expansion_factor", "hook_point_in", "hook_point_out"),
        *("n_qk_heads", "d_qk_head", "rotary_dim", "n_ctx"),
    }
    old = {key: value for key, value in lorsa_config().items() if key in needed}
    config = _read(tmp_path, old).config
    assert isinstance(config, LorsaConfig)
    assert (config.act_fn, config.top_k, config.use_decoder_bias) == ("relu", 50, True)
    assert config.sparsity_include_decoder_norm
    assert (config.rotary_base, config.rotary_adjacent_pairs) == (10_000, True)
    assert (config.use_post_qk_ln, config.eps) == (False, 1e-6)
    assert config.score_divisor == 8**0.5
    old = {key: value for key, value in transcoder_config().items() if key in needed}
    transcoder = _read(tmp_path, old).config
    assert isinstance(transcoder, TranscoderConfig)
    assert not transcoder.use_glu_encoder


def test_the_number_of_features_is_rounded_down_as_llamascopium_does(tmp_path: Path) -> None:
    config = transcoder_config(d_model=10, expansion_factor=1.59)
    assert _read(tmp_path, config).config.d_sae == 15


def test_an_activation_may_be_written_in_capital_letters(tmp_path: Path) -> None:
    assert _read(tmp_path, transcoder_config(act_fn="TopK")).config.act_fn == "topk"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (transcoder_config(sae_type="clt"), "sae_type 'clt'"),
        (transcoder_config(sae_type="crosscoder"), "sae_type 'crosscoder'"),
        (transcoder_config(sae_type=None), "sae_type None"),
        (transcoder_config(act_fn="batchtopk"), "act_fn 'batchtopk'"),
        (transcoder_config(act_fn="layertopk"), "act_fn 'layertopk'"),
        (transcoder_config(top_k=0), "top_k 0"),
        (transcoder_config(top_k=33), "top_k 33"),
        (transcoder_config(d_model=0), "d_model 0"),
        (transcoder_config(d_model="wide"), "d_model 'wide'"),
        (transcoder_config(expansion_factor=0.01), "expansion_factor 0.01"),
        (transcoder_config(hook_point_in="blocks.0.hook_resid_mid"), "hook_point_in"),
        (transcoder_config(hook_point_in="blocks.0.ln1.hook_normalized"), "hook_point_in"),
        (transcoder_config(hook_point_out="blocks.0.mlp.hook_out"), "hook_point_out"),
        (transcoder_config(hook_point_out="blocks.1.hook_mlp_out"), "of one layer"),
        (transcoder_config(use_glu_encoder="sometimes"), "use_glu_encoder 'sometimes'"),
        (lorsa_config(rotary_scale=2), "rotary_scale 2"),
        (lorsa_config(use_NTK_by_parts_rope=True), "use_NTK_by_parts_rope True"),
        (lorsa_config(normalization_type="LN"), "normalization_type 'LN'"),
        (lorsa_config(normalization_type=None), "normalization_type None"),
        (lorsa_config(positional_embedding_type="alibi"), "positional_embedding_type 'alibi'"),
        (lorsa_config(rotary_dim=None), "rotary_dim None"),
        (lorsa_config(rotary_dim=5), "rotary_dim 5"),
        (lorsa_config(rotary_dim=10), "rotary_dim 10"),
        (lorsa_config(rotary_base=0), "rotary_base 0"),
        (lorsa_config(n_qk_heads=5), "n_qk_heads 5"),
        (lorsa_config(attn_scale=0), "attn_scale 0"),
        (lorsa_config(eps=-1.0), "eps -1.0"),
        (lorsa_config(n_ctx=None), "n_ctx None"),
        (lorsa_config(hook_point_in="blocks.0.ln2.hook_normalized"), "hook_point_in"),
        (lorsa_config(hook_point_out="blocks.0.attn.hook_z"), "hook_point_out"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_that_is_not_served_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    with pytest.raises(WeightsError, match=named) as caught:
        _read(tmp_path, config)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("key", ["d_model", "hook_point_in", "n_qk_heads", "n_ctx"])
def test_a_key_without_a_default_is_missed_by_name(tmp_path: Path, key: str) -> None:
    config = lorsa_config()
    del config[key]
    with pytest.raises(WeightsError, match=f"has no '{key}'"):
        _read(tmp_path, config)


def test_a_norm_of_queries_that_is_off_may_be_of_any_type(tmp_path: Path) -> None:
    _read(tmp_path, lorsa_config(use_post_qk_ln=False, normalization_type="LN"))


def test_a_module_without_positions_needs_no_rotary_dimensions(tmp_path: Path) -> None:
    _read(tmp_path, lorsa_config(positional_embedding_type="none", rotary_dim=None))


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_configuration_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json is no JSON"):
        read_module_config(file)


def test_an_unknown_key_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _read(tmp_path, transcoder_config(colour="red"))
    assert "colour" in caplog.text
    caplog.clear()
    _read(tmp_path, lorsa_config(norm_activation="inference", dtype="torch.float32"))
    assert not caplog.records
