"""What the hub and `docker buildx bake` offer is what the worker takes and the registry has."""

import copy
import json
import re
import struct

import jsonschema_rs
import pytest

from loading.entry import ModelEntry
from loading.footprint import device_bytes, disk_bytes
from loading.registry import DEMO, REGISTRY
from loading.selection import resolve_entry
from settings import Settings, read_settings
from tests.support import runpod_hub_schema
from tests.support.bake_file import BAKE, TARGETS
from tests.support.demo_worker import ask
from tests.support.programs import ROOT
from tests.support.runpod_hub_schema import GPU_POOLS
from tools import hub_files
from tools.presets import PRESETS as MADE
from tools.presets import REPOSITORY, as_json

HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text())
LOAD_BALANCER = json.loads((ROOT / ".runpod" / "hub-load-balancer.json").read_text())
TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text())
OF_RUNPOD = {"RUNPOD_INIT_TIMEOUT", "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS"}
ALL_INPUTS = {entry["key"]: entry["input"] for entry in HUB["config"]["env"]}
INPUTS = {key: entry for key, entry in ALL_INPUTS.items() if key not in OF_RUNPOD}
PRESETS = [preset["defaults"] for preset in HUB["config"]["presets"]]
# `handler.py`, the hub's door, doesn't read the HTTP door's; the image and Runpod set their own.
NOT_OFFERED = {"SECRET", "SERVER_HOST", "SERVER_PORT", "IMAGE_WEIGHTS", "HF_TOKEN_PATH"}
NOT_OFFERED |= {"PORT", "PORT_HEALTH", "WORKER_VERSION", "WORKER_REVISION"}
OFFERED = {
    name.upper(): field
    for name, field in Settings.model_fields.items()
    if name.upper() not in NOT_OFFERED and not name.startswith("runpod_")
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


def refused(schema: dict, value: object) -> bool:
    return not jsonschema_rs.is_valid(schema, value)


@pytest.mark.parametrize("hub", [HUB, LOAD_BALANCER], ids=["queue", "load balancer"])
def test_a_hub_file_has_the_form_that_its_guide_publishes(hub):
    jsonschema_rs.validate(runpod_hub_schema.HUB, hub)
    jsonschema_rs.validate(runpod_hub_schema.TESTS, TESTS)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("category",), "text"),
        (("iconUrl",), "icon.png"),
        (("config", "containerDiskInGb"), "220"),
        (("config", "gpuIds"), "AMPERE_24,A100"),
        (("config", "endpointType"), "LOAD_BALANCER"),
        (("config", "env", 0, "input", "type"), "text"),
        (("config", "env", 0, "input", "options"), []),
        (("config", "presets", 0, "default"), {}),
    ],
)
def test_what_the_guide_does_not_publish_is_refused(path, value):
    changed = copy.deepcopy(HUB)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    assert refused(runpod_hub_schema.HUB, changed)


def test_the_hub_s_files_are_those_that_are_made_from_settings_and_registry():
    for path, content in hub_files.files().items():
        assert path.read_text() == as_json(content), "run python -m tools.presets --write"


def test_the_icon_is_the_repository_s_and_a_square_picture():
    assert HUB["iconUrl"] == LOAD_BALANCER["iconUrl"]
    path = HUB["iconUrl"].removeprefix(f"https://raw.githubusercontent.com/{REPOSITORY}/main/")
    icon = (ROOT / path).read_bytes()
    assert icon.startswith(b"\x89PNG")
    assert struct.unpack(">II", icon[16:24]) == (256, 256)
    assert len(icon) < 20_000


def test_the_page_that_the_hub_shows_is_there_and_names_every_setting_that_is_shown():
    page = (ROOT / ".runpod" / "README.md").read_text()
    shown = {key for key, entry in ALL_INPUTS.items() if not entry["advanced"]}
    assert {key for key in ALL_INPUTS if f"`{key}`" in page} >= shown
    for name in ("README.md", ".runpod/README.md"):
        badge = f"[![Runpod](https://api.runpod.io/badge/{REPOSITORY})]"
        assert f"{badge}(https://console.runpod.io/hub/{REPOSITORY})" in (ROOT / name).read_text()


def test_the_load_balancer_s_file_differs_by_its_type_its_title_and_what_the_http_door_needs():
    assert LOAD_BALANCER["config"]["endpointType"] == "LB"
    assert "endpointType" not in HUB["config"]
    assert LOAD_BALANCER["title"] != HUB["title"]
    of_http = [e for e in LOAD_BALANCER["config"]["env"] if e not in HUB["config"]["env"]]
    assert [entry["key"] for entry in of_http] == ["PORT", "SECRET"]
    port, secret = of_http
    assert port["value"] == "80"  # what Runpod asks without the form's help
    assert secret["input"]["required"] is True
    same = {"config", "title"}
    assert {k: v for k, v in HUB.items() if k not in same} == {
        k: v for k, v in LOAD_BALANCER.items() if k not in same
    }
    different = {"endpointType", "env"}
    assert {k: v for k, v in HUB["config"].items() if k not in different} == {
        k: v for k, v in LOAD_BALANCER["config"].items() if k not in different
    }


def test_every_setting_is_offered_and_no_other():
    assert set(INPUTS) == set(OFFERED)
    assert set(ALL_INPUTS) == set(OFFERED) | OF_RUNPOD
    assert len(ALL_INPUTS) == len(HUB["config"]["env"])


@pytest.mark.parametrize("key", INPUTS)
def test_an_input_is_described_as_the_setting_is(key):
    entry = INPUTS[key]
    meaning = OFFERED[key].description
    assert meaning is not None
    assert entry["description"].lower() == meaning.replace("`", "").lower()


@pytest.mark.parametrize("key", INPUTS)
def test_an_input_has_the_setting_s_type(key):
    annotation = OFFERED[key].annotation
    expected = {bool: "boolean", int: "number", float: "number"}.get(annotation, "string")
    assert INPUTS[key]["type"] == ("huggingface" if key == "MODEL_ID" else expected)


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
    literals = ["true", "false"] if "bool" in annotation else re.findall(r"'([\w-]+)'", annotation)
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


def fits_disk(entry: ModelEntry) -> bool:
    assert entry.shapes is not None
    return disk_bytes(entry.shapes) < HUB["config"]["containerDiskInGb"] * 1e9


def test_the_presets_are_what_fits_the_disk_of_the_registry_and_the_demo():
    entries = [resolve_entry(p["MODEL_ID"] or None, p["TRANSCODER_SET"] or None) for p in PRESETS]
    fitting = [entry for entry in REGISTRY if fits_disk(entry)]
    assert entries == [*fitting, DEMO]
    assert len(fitting) > len(REGISTRY) * 0.9
    assert len({preset["name"] for preset in HUB["config"]["presets"]}) == len(entries)


def test_a_preset_s_name_says_a_gpu_that_is_offered_and_holds_it_and_a_disk_with_a_tenth_free():
    offered = {GPU_POOLS[pool] for pool in HUB["config"]["gpuIds"].split(",")}
    assert min(offered) == 24
    for preset in HUB["config"]["presets"][:-1]:
        said = re.search(r"(\d+) GB GPU, (\d+) GB disk, \d+ min first start$", preset["name"])
        assert said is not None
        memory, disk = int(said[1]), int(said[2])
        defaults = preset["defaults"]
        entry = resolve_entry(defaults["MODEL_ID"], defaults["TRANSCODER_SET"])
        assert entry.shapes is not None
        lazy = {"lazy_encoder": entry.lazy_encoder, "lazy_decoder": entry.lazy_decoder}
        needed = device_bytes(entry.shapes, **lazy)
        assert memory in offered
        assert needed < memory * 1e9
        assert not any(needed + 2e9 < other * 1e9 < memory * 1e9 for other in offered)
        assert disk_bytes(entry.shapes) < 0.9 * disk * 1e9
        assert disk <= HUB["config"]["containerDiskInGb"]
    assert HUB["config"]["containerDiskInGb"] == max(p.disk_gb for p in MADE if not p.needs_volume)


def test_the_presets_set_nothing_that_is_not_offered():
    assert {key for preset in PRESETS for key in preset} <= set(ALL_INPUTS)


@pytest.mark.parametrize("config", [f["config"] for f in (HUB, LOAD_BALANCER, TESTS)])
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

BAKED = {name: body for name, body in TARGETS.items() if "_baked" in body.get("inherits", [])}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_each_registry_entry_that_fits_a_disk_has_a_bake_target_and_no_other_model_has():
    named = [(body["args"]["MODEL_ID"], body["args"]["TRANSCODER_SET"]) for body in BAKED.values()]
    fitting = [(entry.model, entry.transcoder_set) for entry in REGISTRY if fits_disk(entry)]
    assert sorted(named) == sorted(fitting)
    [models] = [block["models"] for block in BAKE["group"] if "models" in block]
    assert sorted(models["targets"]) == sorted(BAKED)


def test_each_bake_target_is_named_as_the_preset_and_tagged_as_itself():
    slugs = {preset.entry.transcoder_set: preset.slug for preset in MADE}
    for name, body in BAKED.items():
        assert slugs[body["args"]["TRANSCODER_SET"]] == name
        assert body["tags"] == [f"${{IMAGE}}:${{TAG}}-{name}"]


def test_the_bake_file_builds_stages_and_sets_arguments_that_the_dockerfile_has():
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.M))
    arguments = set(re.findall(r"^ARG (\w+)=", DOCKERFILE, re.M))
    variables = {name for block in BAKE["variable"] for name in block}
    assert {body["target"] for body in TARGETS.values() if "target" in body} <= stages
    assert {name for body in TARGETS.values() for name in body.get("args", {})} <= arguments
    assert TARGETS["_worker"]["args"]["REVISION"] in variables
    assert TARGETS["_baked"]["secret"] == ["id=hf_token,env=HF_TOKEN"]
