"""A model built without waste is the one that TransformerLens builds."""

import pytest
import torch
from transformer_lens import HookedTransformer
from transformer_lens.loading_from_pretrained import get_pretrained_state_dict

from loading import UnsupportedArchitectureError
from loading.hooked_config import hooked_config
from loading.transformerlens_engine import hooked_model, replacement_model
from tests.support.model_configs import CONFIGS, hugging_face_model
from tests.support.tiny_models import tiny_transcoders

CPU = torch.device("cpu")


def as_transformer_lens_does(hf_model, dtype, directory):
    cfg = hooked_config(hf_model.config, model_name="tiny", device=CPU, dtype=dtype)
    model = HookedTransformer(cfg)
    state = get_pretrained_state_dict(str(directory), cfg, hf_model=hf_model, dtype=dtype)
    model.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_buffers_and_hooks_are_those_of_transformer_lens_s_own_way(config, dtype, tmp_path):
    hf_model = hugging_face_model(config).to(dtype)
    expected = as_transformer_lens_does(hf_model, dtype, tmp_path)
    model = hooked_model(HookedTransformer, hf_model, "tiny", CPU, dtype)
    wanted, found = expected.state_dict(), model.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert model.cfg == expected.cfg
    assert model.hook_dict.keys() == expected.hook_dict.keys()
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_layers_of_a_kind_share_their_masks_and_weights_are_not_copied():
    hf_model = hugging_face_model(CONFIGS["gemma2"])
    model = hooked_model(HookedTransformer, hf_model, "tiny", CPU, torch.float32)
    local, other, again = (block.attn for block in model.blocks)
    assert local.mask.data_ptr() == again.mask.data_ptr()
    assert not torch.equal(local.mask, other.mask)
    theirs = hf_model.model.layers[0].mlp.up_proj.weight
    assert model.blocks[0].mlp.W_in.data_ptr() == theirs.data_ptr()


def test_on_another_device_than_the_cpu_layers_of_a_kind_still_share_their_buffers():
    hf_model, transcoders = hugging_face_model(CONFIGS["gemma3"]), tiny_transcoders("relu", "mlp")
    model = replacement_model(hf_model, transcoders, "tiny", torch.device("meta"), torch.float32)
    local, _, again = (dict(block.attn.named_buffers(recurse=False)) for block in model.blocks)
    assert {"mask", "rotary_sin", "rotary_cos"} <= local.keys()
    for name, buffer in local.items():
        assert buffer.is_meta
        assert again[name] is buffer, name


def test_the_model_says_which_device_it_is_on_not_only_of_what_type():
    hf_model = hugging_face_model(CONFIGS["qwen3"])
    device = torch.device("cpu:0")
    model = hooked_model(HookedTransformer, hf_model, "tiny", device, torch.float32)
    assert model.cfg.device == str(device)


@pytest.mark.parametrize("key", ["feature_input_hook", "feature_output_hook"])
@pytest.mark.parametrize("hook", ["hook_mlp_ouput", "mlp.hook_post"])
def test_transcoders_at_a_hook_that_the_model_does_not_have_are_refused_by_name(key, hook):
    transcoders = tiny_transcoders("relu", "residual")
    setattr(transcoders, key, hook)
    hf_model = hugging_face_model(CONFIGS["qwen3"])
    with pytest.raises(UnsupportedArchitectureError, match=f"{key}: {hook}.*config.*mlp.hook_"):
        replacement_model(hf_model, transcoders, "tiny", CPU, torch.float32)
