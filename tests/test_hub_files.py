"""What the hub and `docker buildx bake` offer is what the worker takes and the registry has."""

import json
import re

import hcl2
import pytest

from loading.entry import ModelEntry
from loading.footprint import device_bytes, disk_bytes
from loading.registry import DEMO, REGISTRY
from loading.selection import resolve_entry
from settings import Settings, read_settings
from tests.support.demo_worker import ROOT, ask

HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text())
TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text())
INPUTS = {entry["key"]: entry["input"] for entry in HUB["config"]["env"]}
PRESETS = [preset["defaults"] for preset in HUB["config"]["presets"]]
# `handler.py`, the hub's door, doesn't read the HTTP door's; the image and Runpod set their own.
NOT_OFFERED = {"SECRET", "SERVER_HOST", "SERVER_PORT", "IMAGE_WEIGHTS", "HF_TOKEN_PATH"}
OFFERED = {
    name.upper(): field
    for name, field in Settings.model_fields.items()
    if name.upper() not in NOT_OFFERED and not name.startswith("runpod_")
}
# https://docs.runpod.io/hub/publishing-guide
CATEGORIES = {"audio", "embedding", "language", "video", "image"}
FIELDS = {"name", "description", "type", "default", "required", "advanced"}
MORE_FIELDS = {
    "string": {"options"},
    "number": {"min", "max"},
    "boolean": {"trueValue", "falseValue"},
}
GPU_POOLS = {  # GB
    "AMPERE_16": 16,
    "AMPERE_24": 20,
    "ADA_24": 24,
    "ADA_32_PRO": 32,
    "AMPERE_48": 48,
    "ADA_48_PRO": 48,
    "AMPERE_80": 80,
    "ADA_80_PRO": 80,
    "HOPPER_141": 141,
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def in_the_environment(value: object, entry: dict) -> str:
    """A hub's value as the variable gets it."""
    if isinstance(value, bool):
        return entry["trueValue"] if value else entry["falseValue"]
    return str(value)


def read(monkeypatch, key: str, value: str) -> object:
    """What the worker makes of a variable."""
    monkeypatch.setenv(key, value)
    return getattr(read_settings(), key.lower())


def test_the_hub_s_entry_has_what_its_guide_asks_for():
    config = HUB["config"]
    assert HUB["title"]
    assert HUB["description"]
    assert (HUB["type"], config["runsOn"], config["gpuCount"]) == ("serverless", "GPU", 1)
    assert HUB["category"] in CATEGORIES
    assert set(config["gpuIds"].split(",")) <= set(GPU_POOLS)


def test_every_setting_is_offered_and_no_other():
    assert set(INPUTS) == set(OFFERED)
    assert len(INPUTS) == len(HUB["config"]["env"])


@pytest.mark.parametrize("key", INPUTS)
def test_an_input_is_described_as_the_setting_is(key):
    entry = INPUTS[key]
    assert FIELDS <= set(entry) <= FIELDS | MORE_FIELDS[entry["type"]]
    meaning = OFFERED[key].description
    assert meaning is not None
    assert entry["description"].lower() == meaning.replace("`", "").lower()


@pytest.mark.parametrize("key", INPUTS)
def test_an_input_has_the_setting_s_type(key):
    annotation = OFFERED[key].annotation
    expected = {bool: "boolean", int: "number", float: "number"}.get(annotation, "string")
    assert INPUTS[key]["type"] == expected


@pytest.mark.parametrize("key", INPUTS)
def test_an_input_s_default_is_the_setting_s(key, monkeypatch):
    value = in_the_environment(INPUTS[key]["default"], INPUTS[key])
    image = dict(re.findall(r"(HF_HOME)=(/runpod\S+)", (ROOT / "Dockerfile").read_text()))
    expected = image.get(key, OFFERED[key].default)
    assert read(monkeypatch, key, value) == expected
    assert INPUTS[key]["required"] is OFFERED[key].is_required()


@pytest.mark.parametrize("key", [key for key, entry in INPUTS.items() if "options" in entry])
def test_the_options_are_the_values_that_the_setting_takes(key):
    values = [option["value"] for option in INPUTS[key]["options"]]
    annotation = str(OFFERED[key].annotation)
    literals = ["true", "false"] if "bool" in annotation else re.findall(r"'(\w+)'", annotation)
    unset = [""] if OFFERED[key].default is None else []
    assert values == unset + literals
    assert INPUTS[key]["default"] in values


def test_a_setting_with_few_values_has_options():
    few = {
        key
        for key, field in OFFERED.items()
        if "Literal" in str(field.annotation) or field.annotation == (bool | None)
    }
    assert few == {key for key, entry in INPUTS.items() if "options" in entry}


@pytest.mark.parametrize("key", [key for key, entry in INPUTS.items() if entry["type"] == "number"])
def test_a_number_s_bounds_are_values_that_the_setting_takes(key, monkeypatch):
    for bound in ("min", "max"):
        if bound in INPUTS[key]:
            value = INPUTS[key][bound]
            assert read(monkeypatch, key, str(value)) == value
    limits = [name for m in OFFERED[key].metadata for name in ("ge", "gt") if hasattr(m, name)]
    assert ("min" in INPUTS[key]) == bool(limits)


def fits_gpus(entry: ModelEntry) -> bool:
    """Whether each of the GPUs that are offered has the memory."""
    memory = min(GPU_POOLS[pool] for pool in HUB["config"]["gpuIds"].split(","))
    assert entry.shapes is not None
    lazy = {"lazy_encoder": entry.lazy_encoder, "lazy_decoder": entry.lazy_decoder}
    return device_bytes(entry.shapes, **lazy) < memory * 1e9


def fits_disk(entry: ModelEntry) -> bool:
    assert entry.shapes is not None
    return disk_bytes(entry.shapes) < HUB["config"]["containerDiskInGb"] * 1e9


def test_the_presets_are_what_fits_of_the_registry_and_the_demo():
    entries = [resolve_entry(p["MODEL_ID"] or None, p["TRANSCODER_SET"] or None) for p in PRESETS]
    fitting = [entry for entry in REGISTRY if fits_gpus(entry) and fits_disk(entry)]
    assert entries == [*fitting, DEMO]
    assert len(fitting) > len(REGISTRY) / 2
    assert len({preset["name"] for preset in HUB["config"]["presets"]}) == len(entries)


def test_the_presets_set_nothing_that_is_not_offered():
    assert {key for preset in PRESETS for key in preset} <= set(INPUTS)


@pytest.mark.parametrize("config", [HUB["config"], TESTS["config"]])
def test_only_hosts_that_can_run_torch_s_cuda_are_allowed(config):
    lock = (ROOT / "requirements-cuda.lock").read_text()
    runtime = re.search(r"^nvidia-cuda-runtime-cu12==(\d+\.\d+)", lock, re.M)
    assert runtime is not None
    lowest = tuple(map(int, runtime[1].split(".")))
    assert config["allowedCudaVersions"]
    for version in config["allowedCudaVersions"]:
        assert tuple(map(int, version.split("."))) >= lowest


def test_the_hub_s_tests_run_on_settings_that_there_are():
    variables = {entry["key"]: entry["value"] for entry in TESTS["config"]["env"]}
    assert set(variables) <= set(OFFERED)
    settings = read_settings(**{key.lower(): value for key, value in variables.items()})
    assert resolve_entry(settings.model_id, settings.transcoder_set) == DEMO


def test_the_hub_s_tests_ask_for_every_action_once():
    names = [test["name"] for test in TESTS["tests"]]
    assert names == [test["input"]["action"].replace("-", "_") for test in TESTS["tests"]]
    assert len(set(names)) == 4
    assert all(set(test) == {"name", "input", "timeout"} for test in TESTS["tests"])


@pytest.mark.parametrize("test", TESTS["tests"], ids=lambda test: test["name"])
def test_the_demo_model_answers_what_the_hub_asks(test):
    output = ask(test["input"])
    telling = {
        "generate_graph": lambda: output["nodes"] and output["links"],
        "steer": lambda: output["STEERED_GENERATION"] != output["DEFAULT_GENERATION"],
        "forward_pass": lambda: output["salient_logits"][0]["token"] == " basket",
        "parse_chat_prompt": lambda: output["is_chat"] is False,
    }
    assert telling[test["name"]]()


# docker-bake.hcl

BAKE = hcl2.loads(
    (ROOT / "docker-bake.hcl").read_text(),
    serialization_options=hcl2.SerializationOptions(strip_string_quotes=True),
)
TARGETS = {name: body for block in BAKE["target"] for name, body in block.items()}
BAKED = {name: body for name, body in TARGETS.items() if "_baked" in body.get("inherits", [])}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_each_registry_entry_that_fits_a_disk_has_a_bake_target_and_no_other_model_has():
    named = [(body["args"]["MODEL_ID"], body["args"]["TRANSCODER_SET"]) for body in BAKED.values()]
    fitting = [(entry.model, entry.transcoder_set) for entry in REGISTRY if fits_disk(entry)]
    assert sorted(named) == sorted(fitting)
    [models] = [block["models"] for block in BAKE["group"] if "models" in block]
    assert sorted(models["targets"]) == sorted(BAKED)


def test_each_bake_target_is_tagged_as_itself():
    for name, body in BAKED.items():
        assert body["tags"] == [f"${{IMAGE}}:${{TAG}}-{name}"]


def test_the_bake_file_builds_stages_and_sets_arguments_that_the_dockerfile_has():
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.M))
    arguments = set(re.findall(r"^ARG (\w+)=", DOCKERFILE, re.M))
    variables = {name for block in BAKE["variable"] for name in block}
    assert {body["target"] for body in TARGETS.values() if "target" in body} <= stages
    assert {name for body in TARGETS.values() for name in body.get("args", {})} <= arguments
    assert TARGETS["_worker"]["args"]["REVISION"] in variables
    assert TARGETS["_baked"]["secret"] == ["id=hf_token,env=HF_TOKEN"]
