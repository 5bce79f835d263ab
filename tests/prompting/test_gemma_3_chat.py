"""The name under which circuit-tracer treats a model as what it is."""

import pytest
from transformers import Gemma3Config, Gemma3TextConfig, LlamaConfig

from prompting.gemma_3_chat import circuit_tracer_name, is_gemma_3_it

GEMMA_3 = Gemma3TextConfig()


@pytest.mark.parametrize(
    ("name", "config", "has_chat_template"),
    [
        ("google/gemma-3-4b-it", Gemma3Config(), True),
        ("google/gemma-3-1b-it", GEMMA_3, False),
        ("google/gemma-3-4b-pt", Gemma3Config(), True),
        ("google/gemma-3-270m", GEMMA_3, True),
        ("meta-llama/Llama-3.2-1B", LlamaConfig(), True),
        ("my-copy", GEMMA_3, False),
    ],
)
def test_a_name_that_is_read_right_is_kept(name, config, has_chat_template):
    assert circuit_tracer_name(name, config, has_chat_template=has_chat_template) == name


@pytest.mark.parametrize("name", ["my-copy", "Gemma-3-4B-IT", "x/gemma-3-4b-it-tuned", "0a1b2c"])
@pytest.mark.parametrize("config", [Gemma3Config(), GEMMA_3], ids=["with vision", "text"])
def test_a_gemma_3_chat_model_of_another_name_is_known_by_its_configuration(name, config):
    assert not is_gemma_3_it(name)
    known_as = circuit_tracer_name(name, config, has_chat_template=True)
    assert is_gemma_3_it(known_as)
    assert known_as.startswith(name)


def test_another_model_is_not_taken_for_one_by_its_name():
    known_as = circuit_tracer_name("x/gemma-3-less-it", LlamaConfig(), has_chat_template=True)
    assert not is_gemma_3_it(known_as)
    assert known_as.startswith("x/gemma-3-less-it")
