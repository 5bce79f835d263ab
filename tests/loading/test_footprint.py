"""The memory and disk that a set is said to need, beside files and docs/models.md."""

from dataclasses import replace

import pytest

from loading.footprint import Shapes, device_bytes, disk_bytes
from loading.registry import REGISTRY
from loading.selection import resolve_entry
from tests.support.complete_sets import write_set
from tests.support.tiny_sets import (
    D_MODEL,
    N_FEATURES,
    N_LAYERS,
    cross_layer,
    gemma_scope_2,
    per_layer,
)
from tools.documents import read


@pytest.mark.parametrize(
    ("repositories", "kind"),
    [
        (per_layer("mlp.hook_in", "mlp.hook_out"), {}),
        (per_layer("mlp.hook_in", "mlp.hook_out", skip=True), {"skip": True}),
        (cross_layer, {"cross_layer": True}),
        (gemma_scope_2(clt=True), {"cross_layer": True, "all_decoders_stored": True}),
        (
            gemma_scope_2(clt=True, skip=True),
            {"cross_layer": True, "all_decoders_stored": True, "skip": True},
        ),
        (gemma_scope_2(skip=True), {"skip": True}),
    ],
)
def test_the_disk_needed_is_the_size_of_the_files(repositories, kind):
    shapes = Shapes(
        parameters=0,
        n_layers=N_LAYERS,
        d_model=D_MODEL,
        d_vocab=0,
        n_features=N_FEATURES,
        transcoder_bytes=4,
        **kind,
    )
    held = repositories("mwhanna/gemma-scope-2-1b-pt/folder/width_16k")
    files = {name: content for files in held.values() for name, content in files.items()}
    headers = sum(8 + int.from_bytes(f[:8], "little") for n, f in files.items() if "safe" in n)
    stored = sum(len(content) for name, content in files.items() if "safe" in name) - headers
    # Thresholds are counted whether a set has them or not.
    assert stored <= disk_bytes(shapes) <= stored + 4 * N_LAYERS * N_FEATURES


def test_the_disk_needed_for_a_complete_set_is_the_size_of_its_files(tmp_path):
    write_set(tmp_path, N_LAYERS, act_fn="jumprelu")
    shapes = Shapes(
        parameters=0,
        n_layers=N_LAYERS,
        d_model=16,
        d_vocab=0,
        n_features=32,
        transcoder_bytes=4,
        n_qk_heads=4,
        d_qk_head=8,
        n_ctx=24,
    )
    contents = [file.read_bytes() for file in tmp_path.rglob("*.safetensors")]
    stored = sum(len(content) - 8 - int.from_bytes(content[:8], "little") for content in contents)
    scalars = 4 * (2 * 2 + 1) * N_LAYERS  # norms of the training, and what a mask ignores
    padding = 8 * len(contents)  # of a mask's bytes
    assert 0 <= stored - disk_bytes(shapes) - scalars <= padding


def test_published_complete_sets_have_the_numbers_that_their_shapes_make():
    sizes = {
        entry.transcoder_set.split("/")[2]: entry.shapes.encoder
        + entry.shapes.decoder
        + entry.shapes.other
        for entry in REGISTRY
        if entry.attribution_engine == "lm-saes-crm" and entry.shapes is not None
    }
    assert sizes == {"8x": pytest.approx(4.0e9, rel=0.01), "32x": pytest.approx(15.3e9, rel=0.01)}


def test_features_that_are_active_need_memory_for_their_decoders_and_edges():
    shapes = resolve_entry("meta-llama/Llama-3.1-8B-Instruct", None).shapes
    assert shapes is not None
    lazy = {"lazy_encoder": True, "lazy_decoder": True}
    more, fewer = (device_bytes(replace(shapes, n_active=n), **lazy) for n in (128, 100))
    features = 28 * 64 * shapes.n_layers
    assert more - fewer == features * (2 * shapes.d_model + 4 * 10_000)


def test_what_is_lazy_needs_no_memory_but_a_layer_s():
    shapes = resolve_entry("google/gemma-3-4b-it", None).shapes
    assert shapes is not None
    eager, no_decoder, neither = (
        device_bytes(shapes, lazy_encoder=encoder, lazy_decoder=decoder)
        for encoder, decoder in ((False, False), (False, True), (True, True))
    )
    assert eager - no_decoder == 2 * shapes.decoder
    a_layer = shapes.encoder / shapes.n_layers
    assert no_decoder - neither == pytest.approx(2 * shapes.encoder - 6 * a_layer)


@pytest.mark.parametrize("entry", REGISTRY, ids=lambda entry: entry.transcoder_set)
def test_the_table_of_models_tells_what_is_computed(entry):
    table = read("docs/models.md").splitlines()
    (row,) = [line for line in table if f"| `{entry.transcoder_set}`" in line]
    device = device_bytes(
        entry.shapes, lazy_encoder=entry.lazy_encoder, lazy_decoder=entry.lazy_decoder
    )
    assert ("encoders on the disk" in row) == entry.lazy_encoder
    figures = [f"{device / 1e9:.0f} GB", f"{disk_bytes(entry.shapes) / 1e9:.0f} GB"]
    assert [cell.strip() for cell in row.split("|")][3:5] == figures
