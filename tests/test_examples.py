"""The notebook of examples/ runs from its first cell to its last, and shows what it has saved."""

import re

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

from tests.support.programs import ROOT

NOTEBOOK = ROOT / "examples" / "circuit.ipynb"


def printed(notebook):
    """What each cell prints, without what is another each time."""
    texts = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        assert {output.output_type for output in outputs} <= {"stream"}
        assert {output.name for output in outputs} <= {"stdout"}
        text = "".join(output.text for output in outputs)
        texts.append(re.sub(r"0\.\d+ of|\d+ ms", "", text))
    return texts


def test_the_notebook_shows_what_it_computes(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "examples")
    saved = nbformat.read(NOTEBOOK, as_version=4)
    run = nbformat.read(NOTEBOOK, as_version=4)
    # A socket file, so that no port is taken and nobody else can speak to the kernel.
    kernel = AsyncKernelManager(transport="ipc", ip=str(tmp_path / "kernel"))
    NotebookClient(run, km=kernel, timeout=1_000, startup_timeout=1_000).execute()
    assert printed(run) == printed(saved)
    assert any(printed(saved))


def test_the_notebook_is_ready_for_colab():
    """Its first program brings everything there, and nothing in it is of one machine alone."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "google.colab" in first
    assert "requirements.txt" in first
    assert notebook.metadata.kernelspec.name == "python3"
    assert str(ROOT) not in NOTEBOOK.read_text()
