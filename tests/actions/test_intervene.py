"""intervene on the demo model: the library's numbers in one request, and what is refused."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import model_loader
from actions import intervene
from actions.answer import answer
from errors import Cancelled, DeadlineExceeded, InvalidInput, NotFinite
from schemas import GroupChange, parse_request
from tests.support.demo_worker import PROMPT, ask, demo_settings

GROUPS: dict[str, list[dict[str, Any]]] = {
    "French": [
        {"layer": 2, "index": 157, "position": 4},
        {"layer": 1, "index": 120, "position": 4},
    ],
    "Spanish": [{"layer": 2, "index": 146, "position": 4}],
    "sport": [{"layer": 3, "index": 338, "position": 4, "kind": "transcoder"}],
}
EXPERIMENTS: list[list[dict[str, Any]]] = [
    [{"group": "French", "scale": 0}],
    [{"group": "French", "scale": -2}, {"group": "Spanish", "value": 10.8}],
    [],
]
BODY = {
    "action": "intervene",
    "prompt": PROMPT,
    "groups": GROUPS,
    "experiments": EXPERIMENTS,
    "targets": [" baloncesto", " basket"],
    "top_k": 3,
}


def library(changes: list[dict[str, Any]], **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    loaded = model_loader.get_model(demo_settings())
    ids = loaded.tokenizer(PROMPT, return_tensors="pt").input_ids[0]
    _, activations = loaded.model.get_activations(ids)
    values = {}
    for change in changes:
        for feature in GROUPS[change["group"]]:
            site = (feature["layer"], feature["position"], feature["index"])
            scaled = change.get("scale", 0) * float(activations[site])
            values[site] = change.get("value", scaled)
    interventions = [(*site, value) for site, value in values.items()]
    logits, after = loaded.model.feature_intervention(ids, interventions, **how)
    return logits[0, -1].detach(), after


@pytest.mark.parametrize(
    ("fields", "how"),
    [
        ({}, {}),
        ({"freeze_attention": False}, {"freeze_attention": False}),
        ({"constrained_layers": [1, 2]}, {"constrained_layers": range(1, 3)}),
        ({"constrained_layers": "all"}, {"constrained_layers": range(4)}),
    ],
    ids=["attention frozen", "free", "two layers", "all layers"],
)
def test_each_experiment_has_the_numbers_of_the_library(
    fields: dict[str, Any], how: dict[str, Any]
) -> None:
    output = ask({**BODY, **fields})
    baseline_sum = float(library([])[1][3, 4, 338])
    for row, changes in zip(
        [output["baseline"], *output["experiments"]], [[], *EXPERIMENTS], strict=True
    ):
        logits, activations = library(changes, **how)
        probabilities = logits.softmax(0)
        for target in row["targets"]:
            n = target["token_id"]
            assert target["logit"] == pytest.approx(float(logits[n]), abs=1e-4)
            assert target["probability"] == pytest.approx(float(probabilities[n]), abs=1e-5)
        top = probabilities.topk(3)
        assert [likely["token_id"] for likely in row["top"]] == top.indices.tolist()
        assert [t["probability"] for t in row["top"]] == pytest.approx(
            top.values.tolist(), abs=1e-5
        )
        share = float(activations[3, 4, 338]) / baseline_sum
        assert row["groups"]["sport"] == pytest.approx(share, abs=1e-4)


def test_groups_are_shares_of_the_baseline_as_they_are_set() -> None:
    output = ask(BODY)
    assert output["baseline"]["groups"] == {"French": 1.0, "Spanish": None, "sport": 1.0}
    off, turned, nothing = (row["groups"] for row in output["experiments"])
    assert off["French"] == 0
    assert turned["French"] == pytest.approx(-2)
    assert turned["sport"] != pytest.approx(1, abs=0.01)
    assert nothing["French"] == pytest.approx(1, abs=1e-5)
    assert [list(row) for row in output["experiments"]] == [["top", "targets", "groups"]] * 3
    assert output["experiments"][1]["top"][0]["token"] == " baloncesto"


def test_of_two_changes_of_a_feature_the_last_counts() -> None:
    both = [{"group": "French", "scale": 7}, {"group": "French", "scale": 0}]
    twice, once = ask({**BODY, "experiments": [both, EXPERIMENTS[0]]})["experiments"]
    assert twice["groups"] == pytest.approx(once["groups"], abs=1e-6)
    assert [t["logit"] for t in twice["targets"]] == pytest.approx(
        [t["logit"] for t in once["targets"]], abs=1e-5
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"groups": {"a": [{"layer": 4, "index": 1, "position": 1}]}, "experiments": [[]]},
         r"groups.a\[0\].layer is 4, the model has 4 layers \(0 to 3\)"),
        ({"groups": {"a": [{"layer": 3, "index": 10**6, "position": 1}]}, "experiments": [[]]},
         r"groups.a\[0\].index is 1000000, the model has 1024 features"),
        ({"groups": {"a": [{"layer": 3, "index": 1, "position": 5}]}, "experiments": [[]]},
         r"groups.a\[0\].position is 5, the prompt has 5 tokens"),
        ({"groups": {"a": [{"layer": 3, "index": 1, "position": 2, "kind": "lorsa"}]},
          "experiments": [[]]}, r"groups.a\[0\].kind is 'lorsa'"),
        ({"constrained_layers": [2, 4]}, "constrained_layers ends at 4, the model has 4 layers"),
        ({"constrained_layers": [3, 2]}, r"constrained_layers: give .* got \[3, 2\]"),
        ({"constrained_layers": "some"}, "constrained_layers: give .* got 'some'"),
        ({"targets": [" basket", " nosuchtoken"]}, r"targets\[1\]"),
        ({"top_k": 10**6}, "top_k is 1000000, the model's vocabulary has"),
        ({"experiments": [[{"group": "Frensh", "scale": 0}]]},
         r"experiments\[0\]\[0\].group 'Frensh' is no name in groups; did you mean 'French'"),
        ({"experiments": [[{"group": "French"}]]}, "exactly one of scale and value, got neither"),
        ({"experiments": []}, "experiments"),
        ({"experiments": [[]] * 65}, "experiments"),
        ({"groups": {}}, "groups"),
        ({"groups": {"a": []}}, "groups.a"),
        ({"groups": {str(n): GROUPS["sport"] for n in range(51)}}, "groups"),
        ({"groups": {"a": GROUPS["sport"] * 5_000, "b": GROUPS["sport"] * 5_001}},
         "groups have 10001 features, there may be 10000"),
        ({"groups": {"a": [{"layer": 3, "indx": 1, "position": 1}]}}, "did you mean index"),
    ],
)  # fmt: skip
def test_what_the_model_or_the_request_does_not_have_is_refused_by_name(
    fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        ask({**BODY, **fields})


def test_a_value_that_overflows_is_refused_with_its_experiment() -> None:
    huge = [[], [{"group": "French", "value": 1e300}]]
    with pytest.raises(NotFinite, match=r"experiments\[1\]"):
        ask({**BODY, "experiments": huge})


def test_it_reports_its_stages_and_their_batches() -> None:
    reports: list[tuple[str, float, str]] = []
    settings = demo_settings()
    answer(
        BODY,
        model_loader.get_model(settings),
        settings,
        on_progress=lambda *report: reports.append(report),
    )
    assert [stage for stage, *_ in reports] == [
        "tokenise", "activations", "intervene", "intervene",
    ]  # fmt: skip
    assert reports[-1][1:] == (1.0, "3 of 3 experiments")


def test_it_stops_when_it_is_cancelled_or_late() -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        ask(BODY, cancelled=cancelled)
    with pytest.raises(DeadlineExceeded):
        ask({**BODY, "deadline": time.time() - 1})


def test_ten_thousand_features_and_sixty_four_experiments_are_taken() -> None:
    features = [
        {"layer": n % 4, "index": n // 16, "position": 1 + n // 4 % 4} for n in range(10_000)
    ]
    halves = {"one": features[:5_000], "other": features[5_000:]}
    experiments = [[{"group": "one", "scale": n / 64}] for n in range(64)]
    output = ask({**BODY, "groups": halves, "experiments": experiments})
    shares = [row["groups"]["one"] for row in output["experiments"]]
    assert shares == pytest.approx([n / 64 for n in range(64)], abs=1e-5)


def test_a_range_of_layers_survives_the_client_s_check() -> None:
    for asked in ("all", [0, 2], None):
        request = parse_request({**BODY, "constrained_layers": asked})
        assert request.model_dump(mode="json")["constrained_layers"] == asked


def test_a_group_that_an_experiment_changes_often_is_set_once():
    class Counted(list[int]):
        runs = 0

        def __iter__(self) -> Iterator[int]:
            self.runs += 1
            return super().__iter__()

    columns = {"a": Counted([0, 1]), "b": Counted([1])}
    changes = [GroupChange(group="a", value=v) for v in (1.0, 2.0)]
    changes = [*changes, GroupChange(group="b", value=3.0), GroupChange(group="b", scale=2.0)]
    values = intervene._experiment(changes, columns, [(0, 1, 5), (0, 1, 6)], [7.0, 8.0])
    assert values == {(0, 1, 5): 2.0, (0, 1, 6): 16.0}
    assert (columns["a"].runs, columns["b"].runs) == (1, 1)
