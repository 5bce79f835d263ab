"""Models to steer."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from attribution.complete import freeze
from tests.support.complete_cases import PROMPTS
from tests.support.complete_engine import models_of_cases
from tests.support.steering_cases import KINDS, shared_model


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    """A model of each kind; no test may change it."""
    return shared_model(request.param)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A function: the complete model of a case; no test may change it."""
    return models_of_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def local_of(model_of: Callable[..., Any]) -> Callable[..., Any]:
    """A function: a case's model, frozen on its prompt."""

    @cache
    def frozen(name: str, dtype: torch.dtype = torch.float32) -> Any:
        return freeze(model_of(name, dtype), torch.tensor(PROMPTS[name]))

    return frozen
