"""The models that circuit-tracer maps are found in PyPI's package and in upstream's alike."""

from circuit_tracer.utils import tl_nnsight_mapping
from circuit_tracer.utils.tl_nnsight_mapping import get_mapping

from loading.mapped_architectures import mapped_architectures


def test_the_models_that_the_library_lists_are_found():
    assert {"Gemma2ForCausalLM", "LlamaForCausalLM"} <= set(mapped_architectures())


def test_mappings_are_found_by_their_type_where_the_library_has_no_list_of_them(monkeypatch):
    for name in ("LlamaForCausalLM", "Gemma2ForCausalLM"):  # as upstream's module keeps them
        monkeypatch.setattr(tl_nnsight_mapping, f"{name}_mapping", get_mapping(name), raising=False)
    monkeypatch.delattr(tl_nnsight_mapping, "get_supported_architectures", raising=False)
    assert {"Gemma2ForCausalLM", "LlamaForCausalLM"} <= set(mapped_architectures())
