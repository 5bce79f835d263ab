"""The fixtures beside llamascopium itself. Skipped where it isn't installed: `make crm-check`."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import complete_documents
from tests.support.complete_cases import CASES, N_LAYERS, VARIANTS, write_case
from tests.support.complete_demo import DEMO_CASES, write_demo
from tests.support.complete_documents import assert_same_document
from tests.support.complete_graphs import assert_same_graph, fixture

pytest.importorskip("llamascopium", reason="needs requirements-crm.txt")

from tests.support import llamascopium_reference

pytestmark = pytest.mark.llamascopium

# Of this commit of Neuronpedia are the documents.
_COMMIT = "ebb8426f"
_CHECKOUT = os.environ.get("NEURONPEDIA_SRC")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.mark.parametrize("name", CASES)
def test_a_fixture_is_what_llamascopium_makes_of_its_case(name: str, directory: Path) -> None:
    case = CASES[name]
    graph = llamascopium_reference.reference_graph(write_case(directory, case), case)
    assert_same_graph(graph, fixture(name))


@pytest.mark.parametrize("name", DEMO_CASES)
def test_a_fixture_is_what_llamascopium_makes_of_the_demo(name: str, tmp_path: Path) -> None:
    graph = llamascopium_reference.reference_graph(write_demo(tmp_path), DEMO_CASES[name])
    assert_same_graph(graph, fixture(name))


@pytest.mark.parametrize("variant", VARIANTS)
def test_llamascopium_writes_the_files_that_a_case_has(
    variant: str, directory: Path, tmp_path: Path
) -> None:
    """The same configuration, and tensors of the same names, shapes, dtypes and values."""
    folders = write_case(directory, CASES[f"{variant}-6"])
    for layer in range(N_LAYERS):
        for kind in ("transcoder", "lorsa"):
            folder, theirs = folders.module(kind, layer), tmp_path / kind / str(layer)
            module = llamascopium_reference.load_module(folder, VARIANTS[variant].dtype)
            module.save_pretrained(theirs)
            module.cfg.save_hyperparameters(theirs)
            assert _config(folder) == _config(theirs)
            _assert_same_tensors(_tensors(folder), _tensors(theirs))


@pytest.mark.parametrize("variant", VARIANTS)
def test_llamascopium_computes_the_rotary_tables_and_mask_that_a_case_has(
    variant: str, directory: Path
) -> None:
    folder = write_case(directory, CASES[f"{variant}-6"]).module("lorsa", 0)
    module = llamascopium_reference.load_module(folder, VARIANTS[variant].dtype)
    buffers = dict(type(module)(module.cfg).named_buffers())
    assert len(buffers) == (2 if variant == "no-rotary" else 4)
    tensors = _tensors(folder)
    _assert_same_tensors({name: tensors[name] for name in buffers}, buffers)


@pytest.mark.skipif(_CHECKOUT is None, reason="NEURONPEDIA_SRC names no checkout of Neuronpedia")
@pytest.mark.parametrize("name", complete_documents.CASES)
def test_a_document_is_what_neuronpedia_makes_of_its_case(name: str, directory: Path) -> None:
    assert _CHECKOUT
    folders = write_case(directory, CASES[name])
    document = llamascopium_reference.document(folders, name, Path(_CHECKOUT))
    expected = complete_documents.fixture(name)
    assert_same_document(document, expected)
    assert document["metadata"] == expected["metadata"], f"the fixtures are of {_COMMIT}"


def _config(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((folder / "config.json").read_text())
    return config


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae_weights.safetensors")


def _assert_same_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        expected = theirs[name]
        if len(tensor.shape) and len(tensor) < len(expected):
            # A file with fewer heads than the configuration's: the reader repeats each.
            tensor = tensor.repeat_interleave(len(expected) // len(tensor), dim=0)
        assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape), name
        assert torch.equal(tensor, expected), name
