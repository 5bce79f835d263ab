"""The table of what circuits are worth: sets in graphs in, a row for each way to choose them."""

from benchmarks.circuit_worth import graphs_of, print_table, rows, worker
from remote.circuit_experiments import Options
from remote.circuit_sets import Selection


def test_a_row_has_the_worth_of_its_sets_over_all_graphs_with_chance_beside(capsys):
    ask = worker()
    prompts = ("Michael Jordan joue au", "Rafael Nadal juega al")
    graphs = graphs_of(prompts, ask, node_threshold=1)
    circuits = {
        name: [(graph, Selection(strongest=count).of(graph)) for graph in graphs]
        for name, count in (("few", 4), ("many", 32))
    }
    few, many = found = list(rows(circuits, ask, Options(n_random=5)))
    assert few.worth.completeness < many.worth.completeness
    assert few.worth.completeness > few.worth.chance_of_completeness.high
    print_table(found)
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"| few | 4 of 97 | {few.worth.completeness:.2f} | ")
    assert f"| {many.worth.necessity:.2f} | " in second
