"""Documents of complete replacement models are those that Neuronpedia's converter makes."""

import json
import re

import pytest

import model_loader
from actions.answer import answer
from tests.support.complete_cases import CASES, EXPANSION, TOP_K, write_case
from tests.support.complete_documents import CASES as DOCUMENTS
from tests.support.complete_documents import METADATA, assert_same_document, fixture
from tests.support.demo_worker import as_json, demo_settings
from tests.support.webapp_rules import Graph


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_the_one_of_neuronpedia_s_converter(name, tmp_path):
    case, folders = CASES[name], write_case(tmp_path, CASES[name])
    settings = demo_settings(
        model_id=str(folders.model),
        transcoder_set=str(folders.modules / EXPANSION / TOP_K),
        np_model_id=METADATA["np_model_id"],
        np_transcoder_source_set=METADATA["np_transcoder_source_set"],
        np_lorsa_source_set=METADATA["np_lorsa_source_set"],
    )
    body = {
        "prompt": case.prompt,
        "slug_identifier": METADATA["slug"],
        "enable_qk_tracing": True,
        **{
            field: getattr(case, field)
            for field in (
                *("batch_size", "max_n_logits", "desired_logit_prob", "max_feature_nodes"),
                *("node_threshold", "edge_threshold", "qk_top_fraction", "qk_topk"),
            )
        },
    }

    ours, theirs = as_json(answer(body, model_loader.load(settings), settings)), fixture(name)
    # Tokens as this tokenizer decodes each alone, without the space before it.
    ours = json.loads(re.sub(r'" (?=[w<])', '"', json.dumps(ours, separators=(",", ":"))))

    assert_same_document(ours, theirs)
    Graph.model_validate_json(json.dumps(ours))
    for field, value in theirs["metadata"].items():
        if field == "info":  # each names its own program
            continue
        if isinstance(value, dict):
            assert ours["metadata"][field] | value == ours["metadata"][field]
        else:
            assert ours["metadata"][field] == value
    for node, field in (("nodes", "token"), ("qk_only_nodes", "activation")):
        _assert_same_where_given(ours[node], theirs[node], field)


def _assert_same_where_given(ours, theirs, field):
    """A field of nodes that are not compared otherwise; an activation of 0 is none."""
    if isinstance(theirs, dict):
        ours, theirs = list(ours.values()), list(theirs.values())
    by_id = {node["node_id"]: node for node in ours}
    given = [node for node in theirs if node.get(field) and node["node_id"] in by_id]
    assert given
    for node in given:
        found = by_id[node["node_id"]][field]
        assert found == (node[field] if field == "token" else pytest.approx(node[field], rel=1e-4))
