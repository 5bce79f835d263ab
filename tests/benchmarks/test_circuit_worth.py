"""The table of what circuits are worth: sets in graphs in, a row for each way to choose them."""

from benchmarks.circuit_worth import graphs_of, print_table, rows, worker
from remote.circuits.experiments import Options
from remote.circuits.sets import Selection

PROMPTS = ("Michael Jordan joue au", "Rafael Nadal juega al")


def strongest(graphs, count):
    return [(graph, Selection(strongest=count).of(graph)) for graph in graphs]


def test_a_row_has_the_worth_of_its_sets_over_all_graphs_with_chance_beside(capsys):
    ask = worker()
    graphs = graphs_of(PROMPTS, ask, node_threshold=1)
    circuits = {"few": strongest(graphs, 4), "many": strongest(graphs, 32)}
    few, many = found = list(rows(circuits, ask, Options(n_random=5)))
    assert few.worth.completeness < many.worth.completeness
    assert few.worth.completeness > few.worth.chance_of_completeness.high
    print_table(found)
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"| few | 4 of 97 | {few.worth.completeness:.2f} | ")
    assert f"| {many.worth.necessity:.2f} | " in second


def test_the_complete_set_s_features_of_attention_are_tried_too():
    ask = worker("demo-crm")
    graphs = graphs_of(PROMPTS, ask, node_threshold=1)
    kinds = set()

    def recorded(job):
        for group in job.get("groups", {}).values():
            kinds.update(feature["kind"] for feature in group)
        return ask(job)

    [row] = rows({"": strongest(graphs, 32)}, recorded, Options(n_random=5))
    assert kinds == {"transcoder", "lorsa"}
    assert row.worth.completeness > row.worth.chance_of_completeness.high
    assert row.worth.necessity > row.worth.chance_of_necessity.high
