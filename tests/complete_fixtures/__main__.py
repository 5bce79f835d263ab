"""Write the fixtures of complete replacement models anew. Llamascopium must be there.

    make crm-fixtures                                    what llamascopium makes of every case
    PYTHONPATH=out/crm .venv/bin/python -m tests.complete_fixtures --neuronpedia CHECKOUT
                                                         the documents of Neuronpedia's too

CHECKOUT is a clone of github.com/hijohnnylin/neuronpedia; the documents here are of commit
ebb8426f.

A case must have the same lists in float64, so that no near tie lets a fixture depend on the
machine, and nearly the same edges, so that llamascopium's own rounding leaves room within the
tolerance.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from tests.support import complete_documents, complete_graphs, llamascopium_reference
from tests.support.complete_cases import CASES, write_case
from tests.support.complete_demo import DEMO_CASES, write_demo


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the fixtures anew.")
    parser.add_argument("--neuronpedia", type=Path, metavar="CHECKOUT")
    checkout = parser.parse_args().neuronpedia
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        demo = write_demo(Path(directory))
        for name, case in (CASES | DEMO_CASES).items():
            folders = demo if name in DEMO_CASES else write_case(Path(directory), case)
            graph = llamascopium_reference.reference_graph(folders, case)
            in_float64 = llamascopium_reference.reference_graph(folders, case, torch.float64)
            complete_graphs.assert_same_graph(graph, in_float64, tolerance=6e-7)
            complete_graphs.save(graph, complete_graphs.fixture_path(name))
            if checkout and name in complete_documents.CASES:
                document = llamascopium_reference.document(folders, name, checkout)
                complete_documents.save(document, complete_documents.fixture_path(name))


if __name__ == "__main__":
    main()
