"""The classes by which configurations are told apart, beside transformers' own list."""

from types import SimpleNamespace

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from loading.hooked_config import _CONVERTERS
from loading.mapped_architectures import mapped_architectures
from loading.served_values import _CLASSES, class_of


def test_each_class_that_an_engine_serves_is_that_of_its_type_in_transformers():
    assert set(_CLASSES.values()) == {*_CONVERTERS, *mapped_architectures()}
    for model_type in _CLASSES:
        config = SimpleNamespace(model_type=model_type)
        assert class_of(config) == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
