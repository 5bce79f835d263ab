"""Which architectures circuit-tracer maps for nnsight: PyPI's lists them, upstream doesn't."""

from circuit_tracer.utils import tl_nnsight_mapping


def nnsight_architectures() -> list[str]:
    """The Hugging Face classes that circuit-tracer maps for nnsight, sorted."""
    listed = getattr(tl_nnsight_mapping, "get_supported_architectures", None)
    if listed is not None:
        return sorted(listed())
    # Upstream keeps each mapping under a name of the module.
    mapping = tl_nnsight_mapping.TransformerLens_NNSight_Mapping
    found = (m for m in vars(tl_nnsight_mapping).values() if isinstance(m, mapping))
    return sorted(m.model_architecture for m in found)
