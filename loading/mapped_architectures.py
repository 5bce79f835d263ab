"""Which Hugging Face models circuit-tracer maps to TransformerLens's names, for its nnsight engine.

PyPI's circuit-tracer has a function that lists them, upstream's has none. Importing this module
imports no nnsight.
"""

from typing import Any

from circuit_tracer.utils import tl_nnsight_mapping

from loading import UnsupportedArchitectureError
from loading.served_values import check_class, class_of


def mapped_architectures() -> list[str]:
    """The classes of the models, such as `Gemma2ForCausalLM`, sorted."""
    listed = getattr(tl_nnsight_mapping, "get_supported_architectures", None)
    if listed is not None:
        return sorted(listed())
    # Upstream keeps each mapping under a name of the module.
    mapping = tl_nnsight_mapping.TransformerLens_NNSight_Mapping
    found = (m for m in vars(tl_nnsight_mapping).values() if isinstance(m, mapping))
    return sorted(m.model_architecture for m in found)


def check_mapped(config: Any, name: str) -> None:
    """Raise UnsupportedArchitectureError unless circuit-tracer maps a configuration's model."""
    architecture, served = class_of(config), mapped_architectures()
    named, *_ = config.architectures or [architecture]
    if not {architecture, named} & {*served}:
        raise UnsupportedArchitectureError(
            f"{name} is a {named}, and MODEL_ENGINE=nnsight serves {', '.join(served)}; set "
            "MODEL_ENGINE=transformerlens"
        )
    check_class(config)
