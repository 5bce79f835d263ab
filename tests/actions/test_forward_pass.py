"""forward-pass on the demo model: as few of the likeliest tokens as reach the probability asked."""

import pytest

from errors import InvalidInput, PromptTooLong
from tests.support.demo_worker import FORWARD, GRAPH, PROMPT, TOO_LONG, ask, demo_settings

VAGUE = {**FORWARD, "prompt": "The"}  # many tokens may follow


def test_the_output_has_the_contract_s_fields():
    output = ask(FORWARD)
    assert list(output) == [
        "prompt",
        "input_tokens",
        "salient_logits",
        "total_salient_tokens",
        "cumulative_probability",
    ]
    assert output["prompt"] == PROMPT
    assert output["input_tokens"] == ["<|bos|>", "Michael", " Jordan", " joue", " au"]
    assert set(output["salient_logits"][0]) == {"token", "token_id", "probability"}
    assert output["salient_logits"][0]["token"] == " basket"


@pytest.mark.parametrize("desired", [1e-9, 0.3, 0.6, 0.9, 1])
def test_the_fewest_of_the_likeliest_that_reach_the_probability_are_salient(desired):
    output = ask({**VAGUE, "desired_logit_prob": desired, "max_n_logits": 1000})
    probabilities = [logit["probability"] for logit in output["salient_logits"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert output["total_salient_tokens"] == len(probabilities)
    assert output["cumulative_probability"] == pytest.approx(sum(probabilities), abs=1e-5)
    assert sum(probabilities[:-1]) < desired + 1e-6
    assert sum(probabilities) > desired - 1e-5 or len(probabilities) == 1000


def test_no_more_than_max_n_logits_are_salient_and_ten_by_default():
    assert ask({**VAGUE, "desired_logit_prob": 1, "max_n_logits": 3})["total_salient_tokens"] == 3
    assert ask({**VAGUE, "desired_logit_prob": 1})["total_salient_tokens"] == 10
    assert ask({**VAGUE, "max_n_logits": 1000}) == ask(
        {**VAGUE, "max_n_logits": 1000, "desired_logit_prob": 0.95}
    )


def test_as_many_logits_as_there_are_tokens_may_be_asked_for_and_no_more():
    with pytest.raises(InvalidInput, match="max_n_logits is 1000000, the model's vocabulary") as e:
        ask({**FORWARD, "max_n_logits": 10**6})
    n_vocabulary = int(str(e.value).rpartition("has ")[2].split()[0])
    whole = ask({**FORWARD, "max_n_logits": n_vocabulary, "desired_logit_prob": 1})
    assert whole["cumulative_probability"] == pytest.approx(1, abs=1e-5)
    with pytest.raises(InvalidInput):
        ask({**FORWARD, "max_n_logits": n_vocabulary + 1})


def test_a_prompt_beyond_the_token_limit_is_answered_and_counted():
    prompt = " ".join([PROMPT] * 40)
    with pytest.raises(PromptTooLong, match="the limit is 64"):
        ask({**GRAPH, "prompt": prompt})
    output = ask({**FORWARD, "prompt": prompt})
    assert len(output["input_tokens"]) == 1 + 4 * 40
    assert "".join(output["input_tokens"][1:]) == prompt
    assert output == ask({**FORWARD, "prompt": prompt}, demo_settings(token_limit=512))


def test_its_bound_is_the_model_s_context_whatever_the_token_limit():
    whole = ask({**FORWARD, "prompt": " au" * 511}, demo_settings(token_limit=8))
    assert len(whole["input_tokens"]) == 512
    with pytest.raises(PromptTooLong, match=r"has 513 tokens, the model's context is 512$"):
        ask({**FORWARD, "prompt": " au" * 512})
    with pytest.raises(PromptTooLong, match="the model's context is 512"):
        ask({**FORWARD, "prompt": TOO_LONG}, demo_settings(token_limit=1000))


def test_a_token_limit_above_the_model_s_context_is_that_context_for_every_action():
    with pytest.raises(PromptTooLong, match="the model's context is 512"):
        ask({**GRAPH, "prompt": " au" * 512}, demo_settings(token_limit=1000))
