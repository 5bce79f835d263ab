"""Which Hugging Face models circuit-tracer maps to TransformerLens's names, for its nnsight engine.

PyPI's circuit-tracer has a function that lists them, upstream's has none. Importing this module
imports no nnsight.
"""

from circuit_tracer.utils import tl_nnsight_mapping


def mapped_architectures() -> list[str]:
    """The classes of the models, such as `Gemma2ForCausalLM`, sorted."""
    listed = getattr(tl_nnsight_mapping, "get_supported_architectures", None)
    if listed is not None:
        return sorted(listed())
    # Upstream keeps each mapping under a name of the module.
    mapping = tl_nnsight_mapping.TransformerLens_NNSight_Mapping
    found = (m for m in vars(tl_nnsight_mapping).values() if isinstance(m, mapping))
    return sorted(m.model_architecture for m in found)
