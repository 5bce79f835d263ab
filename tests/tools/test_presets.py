"""The page of presets, its endpoints and what a graph costs are what they are computed from."""

import json
import re

import pytest

from benchmarks import preset_costs
from benchmarks.preset_costs import CARDS, costs_of, layers_of, seconds_a_graph
from benchmarks.workload_costs import Cost
from loading.footprint import device_bytes
from model_loader import REGISTRY
from settings import read_settings
from tests.support.runpod_hub_schema import GPU_POOLS
from tools import runpod_rest
from tools.preset_pages import NAMING, PAGE, with_names, with_tables
from tools.presets import ENDPOINTS, POOLS, PRESETS, REPOSITORY, as_json, bodies, image

NAMES = [preset.slug for preset in PRESETS]
NAMED = dict(zip(NAMES, PRESETS, strict=True))
BODIES = {path.stem: json.loads(path.read_text()) for path in ENDPOINTS.glob("*.json")}
needs_the_document = pytest.mark.skipif(
    runpod_rest.OPENAPI is None, reason="Runpod's OpenAPI document is not at hand"
)


def test_every_known_model_is_a_preset_under_a_name_of_its_own():
    assert [preset.entry for preset in PRESETS] == list(REGISTRY)
    assert len(set(NAMES)) == len(NAMES)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in NAMES)


def test_the_page_has_the_tables_that_are_computed():
    page = PAGE.read_text()
    assert with_tables(page) == page, "run python -m tools.presets --write"
    for name in NAMES:
        assert page.count(f"| {name} |") == 2  # first start and costs
        assert page.count(f"[{name}](endpoints/{name}.json)") == 1
    assert with_tables(page.replace("| gemma-2-2b |", "| gemma |")) == page


def test_the_pages_have_the_names_of_now_and_others_are_replaced():
    for path in NAMING:
        page = path.read_text()
        assert with_names(page) == page, "run python -m tools.presets --write"
        forked = page.replace(REPOSITORY, "someone/worker")
        assert forked != page
        assert with_names(forked) == page
        assert with_names(page.replace(image(), "ghcr.io/a/b:0.0.9-rc1")) == page


def test_the_endpoints_are_the_presets_and_one_behind_a_load_balancer():
    assert set(BODIES) == {*NAMES, "load-balancer"}
    for name, body in bodies().items():
        assert (ENDPOINTS / f"{name}.json").read_text() == as_json(body), "python -m tools.presets"


@needs_the_document
@pytest.mark.parametrize("name", BODIES)
def test_an_endpoint_s_body_is_one_that_runpod_s_api_takes(name):
    assert runpod_rest.faults("POST", "/v2/serverless", BODIES[name]) == []


@needs_the_document
def test_a_load_balancer_cannot_be_scaled_by_its_queue():
    body = {**BODIES["load-balancer"], "scaling": BODIES["gemma-2-2b"]["scaling"]}
    assert runpod_rest.faults("POST", "/v2/serverless", body)


@pytest.mark.parametrize("name", BODIES)
def test_an_endpoint_asks_for_hosts_gpus_and_disks_that_fit(name):
    body = BODIES[name]
    env = body["env"]
    [entry] = [e for e in REGISTRY if e.transcoder_set == env["TRANSCODER_SET"]]
    assert entry.model == env["MODEL_ID"]
    assert body["gpu"]["minCudaVersion"] == "12.8"
    assert body["flashboot"] == "FLASHBOOT"
    assert body["image"] == image()
    lazy = {"lazy_encoder": entry.lazy_encoder, "lazy_decoder": entry.lazy_decoder}
    assert entry.shapes is not None
    for pool in body["gpu"]["pools"]:
        assert device_bytes(entry.shapes, **lazy) < GPU_POOLS[pool] * 1e9
    preset = next(preset for preset in PRESETS if preset.entry == entry)
    assert ("networkVolumes" in body) == (preset.fetched_bytes > 0.9 * 220e9)
    assert ("networkVolumes" in body) == ("dataCenterIds" in body)
    if "networkVolumes" not in body:
        assert preset.fetched_bytes < 0.9 * body["disk"] * 1e9
    assert preset.fetched_bytes + preset.copied_bytes < preset.volume_gb * 1e9
    gated = entry.model.startswith(("google/", "meta-llama/"))
    assert ("HF_TOKEN" in env) == gated
    assert int(env["RUNPOD_INIT_TIMEOUT"]) >= 2 * preset.first_start_s(1)


def test_the_variables_of_the_endpoints_are_settings_or_runpod_s():
    for body in BODIES.values():
        ours = {
            key.lower(): value
            for key, value in body["env"].items()
            if not key.startswith("RUNPOD_")
        }
        settings = read_settings(**ours)
        for name, value in ours.items():
            if name not in {"hf_token", "secret"}:
                assert str(getattr(settings, name)) == value


def test_pools_have_the_memory_that_runpod_publishes():
    for name, pool in POOLS.items():
        assert pool.memory == GPU_POOLS[name] >= 24
        assert CARDS[pool.card].memory == pool.memory * 1e9


def test_the_first_start_is_download_reading_and_what_every_start_takes():
    preset = NAMED["gemma-2-2b"]
    assert preset.fetched_bytes == pytest.approx(18.3e9, rel=0.01)
    slow, fast = preset.first_start_s(1), preset.first_start_s(5)
    assert slow - fast == pytest.approx(preset.fetched_bytes * 8 / 1e9 * (1 - 1 / 5))
    assert fast > 30 + preset.fetched_bytes * 8 / 5e9
    copied = NAMED["gemma-3-27b-pt"]
    assert copied.copied_bytes == pytest.approx(699e9, rel=0.01)
    assert copied.volume_gb > 1400


def test_the_cached_model_is_the_larger_part_but_never_one_of_many_sets():
    assert NAMED["gemma-2-2b"].cached_repository == "google/gemma-2-2b"
    assert NAMED["qwen3-4b"].cached_repository == "mwhanna/qwen3-4b-transcoders"
    assert NAMED["gemma-3-4b-it"].cached_repository == "google/gemma-3-4b-it"
    assert NAMED["gemma-2-2b-npz"].cached_repository == "google/gemma-2-2b"


# What a graph costs


@pytest.mark.parametrize("preset", PRESETS, ids=NAMES)
def test_the_layers_of_a_model_make_its_parameters(preset):
    s, layer = preset.entry.shapes, layers_of(preset.entry.model)
    heads = layer.n_heads + layer.n_values
    mlp = layer.d_mlp * (8 if preset.slug == "gpt-oss-20b" else 1)  # 32 experts, 4 at work
    of_layers = s.n_layers * s.d_model * (2 * heads * layer.d_head + 3 * mlp)
    once = of_layers + s.d_vocab * s.d_model
    # Embeddings are tied or not; Gemma 3 from 4B on also has a vision tower of 0.4 billion.
    vision = 0.42e9 if re.match(r"gemma-3-(4|12|27)b", preset.slug) else 0
    either = [once + vision, once + vision + s.d_vocab * s.d_model]
    assert min(abs(n / s.parameters - 1) for n in either) < 0.03


def test_a_graph_s_shapes_are_those_of_the_footprint():
    entry = NAMED["llama-3-1-8b-instruct"].entry
    shapes = preset_costs.shapes_of_entry(entry, CARDS["A100"])
    assert shapes.n_active == 64 * 32 * 128
    assert shapes.n_features == 10_000
    assert (shapes.n_heads, shapes.values) == (32, 8 * 128)


def test_a_cross_layer_set_costs_more_in_what_meets_its_decoders_and_nowhere_else():
    whole, per_layer = (NAMED[name].entry for name in ("gemma-2-2b-clt-426k", "gemma-2-2b"))
    card = CARDS["A100"]
    ours, other = costs_of(whole, card), costs_of(per_layer, card)
    # 26 layers: a feature is written to 13.5 of them on average.
    assert ours["encoding and freezing"].n_bytes > 5 * other["encoding and freezing"].n_bytes
    ratio = ours["sweep: features"].flop / other["sweep: features"].flop
    assert 8 < ratio < 14
    assert ours["forward pass"] == other["forward pass"]


def test_a_complete_set_costs_what_its_products_take():
    entry = NAMED["qwen3-1-7b-complete"].entry
    costs = costs_of(entry, CARDS["A100"])
    # 64 tokens with 64 features in each of 56 modules, embeddings and errors, in 2,048 dimensions:
    # a product of every target with every source.
    sources = 64 * (56 * 64 + 57)
    assert costs["edges"].flop_float32 == pytest.approx(2 * 2048 * 10_010 * sources, rel=0.001)
    wider = costs_of(NAMED["qwen3-1-7b-complete-32x"].entry, CARDS["A100"])
    assert wider["encoding and freezing"].flop > 3.5 * costs["encoding and freezing"].flop
    assert wider["edges"] == costs["edges"]
    active = 64 * 56 * 64 * 2048 * 2
    assert preset_costs.bytes_read(entry) == active


def test_a_complete_set_is_read_whole_at_the_start_for_its_decoders_norms():
    preset = NAMED["qwen3-1-7b-complete"]
    whole = 30 + preset.fetched_bytes * 8 / 1e9 + preset.fetched_bytes / 2e9
    assert preset.first_start_s(1) == pytest.approx(whole)


def test_what_stays_on_the_disk_is_read_for_each_graph():
    entry = NAMED["qwen3-8b"].entry
    assert preset_costs.bytes_read(entry) == pytest.approx(48.3e9 + 1.9e9, rel=0.01)
    computed = sum(costs_of(entry, CARDS["A40"]).values(), Cost())
    assert computed.launches > 0
    assert seconds_a_graph(entry, "A40") > 50e9 / preset_costs.DISK
    assert preset_costs.bytes_read(NAMED["gemma-2-2b"].entry) == 0


def test_a_larger_card_is_faster():
    entry = NAMED["gemma-2-2b"].entry
    times = [seconds_a_graph(entry, card) for card in ("L4", "A40", "A100", "H100", "H200")]
    assert times == sorted(times, reverse=True)
