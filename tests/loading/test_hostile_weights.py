"""Weights that ask for too much time or memory, or bring code, are refused by the file's name."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import model_loader
from loading import WeightsError
from loading.checkpoint import weight_files
from loading.inspection import inspect
from loading.json_files import read_json
from loading.model_folder import ModelNeeds, read_model_config
from loading.model_tokenizer import read_tokenizer
from loading.registry import DEMO
from loading.tensor_files import read_tensor, tensors_in
from loading.transcoder_folder import CONFIG, TranscoderNeeds, read_set_config
from model_loader import ModelLoadError
from tests.support.conversions import located
from tests.support.demo_worker import demo_settings
from tests.support.model_configs import read_config
from tests.support.programs import ROOT
from tests.support.transcoder_folders import write_set

SET = "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: b\n"
MANY = 1_000_000_000


def laughs(value: str, end: str) -> str:
    """YAML in which ten lines stand for 9^10 values."""
    lines = [f" - &a0 {value}"]
    for i in range(1, 10):
        lines.append(f" - &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]")
    return "tags:\n" + "\n".join(lines) + f"\n{end}\n"


def npz(path: Path, header: bytes, data: int = 0, *, kind: int = zipfile.ZIP_DEFLATED) -> None:
    """An archive of one array, of a header as given and as many zeros."""
    with zipfile.ZipFile(path, "w", kind) as archive, archive.open("W_enc.npy", "w") as file:
        file.write(header)
        for _ in range(data >> 20):
            file.write(bytes(1 << 20))


def npy_header(shape: object, *, version: int = 1) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 * version, "little") + text


def safetensors(path: Path, header: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header)


# What reads a folder, and a file of it with its content, or what writes it.
YAMLS = {
    "aliases that stand for billions of values": SET + laughs("[x, x, x]", "k: *a9"),
    "merges of aliases": SET + laughs("{a: b}", "scan: {<<: [*a9, *a9]}"),
    "an anchor that holds itself": SET + "tags: &a [*a]\n",
    "nesting": SET + "tags: " + "[" * 100_000,
    "nested mappings": SET + "tags: " + "{a: " * 50_000,
    "a number of 200,000 digits": SET + "k: " + "9" * 200_000,
    "a number of 200,000 hexadecimal digits": SET + "k: 0x" + "f" * 200_000,
    "a k of billions": SET + f"k: {MANY}",
    "a negative number of 200,000 hexadecimal digits": SET + "k: -0x" + "f" * 200_000,
    "a file of megabytes": SET + "tags: [" + "a," * 2_000_000 + "]",
    "a list of more files than layers": SET
    + "transcoders: ["
    + ",".join(f"a{i}" for i in range(40_000)),
    "a value that makes a date of nothing": SET + "version: 2001-99-99",
    "a value of a kind that PyYAML fails on": SET + "version: !!int ''",
    "a scan that is a list of lists": SET + "scan: [[a]]",
    "a tag of Python's": SET + "scan: !!python/object/apply:os.system ['exit 1']",
}
CONFIGS = {
    "layers": {"num_hidden_layers": MANY},
    "a text model's layers": {"text_config": {"num_hidden_layers": MANY}},
    "GPT-2's layers": {"n_layer": MANY},
    "layers in a deep part": {"parts": [{"vision_config": {"num_hidden_layers": MANY}}]},
    "labels": {"num_labels": MANY},
    "a vocabulary": {"vocab_size": MANY},
    "a width": {"hidden_size": MANY},
    "an infinite width": {"hidden_size": float("inf")},
    "an MLP": {"intermediate_size": MANY},
    "heads": {"num_attention_heads": MANY},
    "experts": {"num_local_experts": MANY},
    "a context": {"max_position_embeddings": MANY},
    "layers of hundreds of digits": {"num_hidden_layers": 10**4000},
    "layers in words": {"num_hidden_layers": "many"},
    "layers that are half": {"num_hidden_layers": 2.5},
    "a text model that is a list": {"text_config": [1]},
}
JSONS = {
    "nesting": '{"a": ' + "[" * 200_000,
    "nesting that ends": '{"a": ' + "[" * 900 + "]" * 900 + "}",
    "a number of 200,000 digits": '{"a": ' + "9" * 200_000 + "}",
    "megabytes of empty objects": '{"a": [' + "{}," * 10_000_000 + "{}]}",
}


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_a_config_yaml_that_stands_for_too_much_is_refused_by_name(tmp_path, text):
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(WeightsError) as caught:
        read_set_config(tmp_path)
    assert str(tmp_path / CONFIG) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", JSONS.values(), ids=JSONS)
def test_json_that_stands_for_too_much_is_refused_by_name(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json") as caught:
        read_json(tmp_path / "config.json")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("changed", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_of_a_model_that_there_can_not_be_is_refused_by_name(tmp_path, changed):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "qwen3", **changed}))
    for read in (read_config, read_model_config):
        with pytest.raises(WeightsError) as caught:
            read(tmp_path)
        assert str(file) in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_the_configurations_of_real_models_keep_within_the_bounds(tmp_path):
    real = {
        "model_type": "gemma3",
        "vision_feature_layer": -2,
        "text_config": {
            "num_hidden_layers": 126,
            "vocab_size_per_layer_input": 262_144,
            "vocab_size": 262_208,
            "max_position_embeddings": 10_485_760,
            "rope_theta": 1_000_000_000,
            "hidden_size": 16_384,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(real))
    assert read_model_config(tmp_path).n_layers == 126


def test_a_file_of_a_layer_beyond_all_is_refused_by_name(tmp_path):
    (tmp_path / CONFIG).write_text(SET)
    for number in (str(MANY), "9" * 200):
        file = tmp_path / f"layer_{number}.safetensors"
        file.touch()
        with pytest.raises(WeightsError, match=rf"layer_{number[:20]}.*beyond the 1000"):
            TranscoderNeeds().missing(tmp_path)
        file.unlink()


@pytest.mark.parametrize(
    "files",
    [None, [], {"a": 1}, {"a": ["b"]}, {"a": "../b.safetensors"}, {"a": "/etc/b.safetensors"}],
    ids=str,
)
def test_an_index_that_names_no_files_beside_it_is_refused_by_name(tmp_path, files):
    for name, content in {"config.json": {}, "tokenizer.json": {}}.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    for read in (ModelNeeds().missing, weight_files):
        with pytest.raises(WeightsError, match=r"index\.json: `weight_map` is no object of files"):
            read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_in_a_file_s_place_is_refused_and_not_waited_for(tmp_path):
    for name in ("config.json", CONFIG, "a.safetensors", "a.npz"):
        os.mkfifo(tmp_path / name)
    for read in (
        lambda: read_json(tmp_path / "config.json"),
        lambda: read_set_config(tmp_path),
        lambda: tensors_in(tmp_path / "a.safetensors"),
        lambda: tensors_in(tmp_path / "a.npz"),
    ):
        with pytest.raises(WeightsError, match="no regular file"):
            read()


class TestTensors:
    def test_a_header_of_millions_of_tensors_is_refused_by_name(self, tmp_path):
        file = tmp_path / "a.safetensors"
        one = '"{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
        safetensors(file, ("{" + ",".join(one.format(i) for i in range(400_000)) + "}").encode())
        for read in (lambda: tensors_in(file), lambda: read_tensor(file, "0")):
            with pytest.raises(WeightsError, match=r"a\.safetensors is damaged.*header too large"):
                read()

    def test_a_header_of_an_array_of_gigabytes_is_refused_by_name(self, tmp_path):
        header = b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little")
        npz(tmp_path / "a.npz", header, 8 << 20)
        for read in (tensors_in, lambda path: read_tensor(path, "W_enc")):
            with pytest.raises(WeightsError, match=r"a\.npz is damaged.*a header of 2147483648"):
                read(tmp_path / "a.npz")

    @pytest.mark.parametrize("shape", [(10**18, 4), (1 << 40,), (-5, 4)], ids=str)
    def test_a_shape_that_is_more_than_the_file_holds_is_refused_by_name(self, tmp_path, shape):
        npz(tmp_path / "a.npz", npy_header(shape), 1 << 20)
        with pytest.raises(WeightsError, match=r"a\.npz is damaged"):
            tensors_in(tmp_path / "a.npz")

    def test_a_size_that_compression_can_not_have_made_is_refused_by_name(self, tmp_path):
        path = tmp_path / "a.npz"
        npz(path, npy_header((1 << 28,)), 1 << 20)
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo("W_enc.npy").file_size
        claimed = (1 << 30) + size - (1 << 20)
        held = path.read_bytes()
        path.write_bytes(held.replace(size.to_bytes(4, "little"), claimed.to_bytes(4, "little")))
        with pytest.raises(WeightsError, match=r"a\.npz is damaged.*can't have"):
            tensors_in(path)

    @pytest.mark.parametrize("n_features", [0, 1 << 27])
    def test_a_set_of_no_or_of_impossibly_many_features_is_refused_by_name(
        self, tmp_path, n_features
    ):
        folder = write_set(tmp_path / "set")
        n_bytes = n_features * 4
        header = {
            name: {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
            for name, shape, begin, end in (
                ("W_enc", [n_features, 0], 0, 0),
                ("W_dec", [n_features, 0], 0, 0),
                ("b_dec", [0], 0, 0),
                ("b_enc", [n_features], 0, n_bytes),
            )
        }
        file = folder / "layer_0.safetensors"
        safetensors(file, json.dumps(header).encode())
        with file.open("ab") as opened:
            opened.truncate(file.stat().st_size + n_bytes)  # takes no room
        with pytest.raises(
            WeightsError, match=r"layer_0\.safetensors.*from 1 to 67108864 features"
        ):
            inspect(located(folder, {}))


class TestTheStart:
    @pytest.fixture
    def model(self, tmp_path):
        return Path(shutil.copytree(ROOT / DEMO.model, tmp_path / "model"))

    def start(self, model: Path) -> str:
        """The sentence with which the start fails."""
        settings = demo_settings(
            model_id=str(model), transcoder_set=str(ROOT / DEMO.transcoder_set)
        )
        with pytest.raises(ModelLoadError) as caught:
            model_loader.load(settings)
        return str(caught.value)

    @pytest.mark.parametrize(
        "template",
        [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{{ 'a' * 4000000000 }}",
            "{% if messages | length == 3 %}{{ '%4000000000d' % 1 }}{% endif %}",
        ],
        ids=["loops", "builds gigabytes", "builds gigabytes for some messages"],
    )
    def test_a_template_that_takes_too_much_stops_the_start_by_its_file(self, model, template):
        (model / "chat_template.jinja").write_text(template)
        sentence = self.start(model)
        assert sentence.startswith(f"{model / 'chat_template.jinja'} is not served: ")
        assert "takes more than" in sentence

    def test_layers_by_the_billion_stop_the_start_by_their_file(self, model):
        config = json.loads((model / "config.json").read_text())
        config["num_hidden_layers"] = MANY
        (model / "config.json").write_text(json.dumps(config))
        assert self.start(model).startswith(f"{model / 'config.json'} has 'num_hidden_layers'")

    @pytest.mark.parametrize("name", ["tokenizer.json", "merges.txt", "chat_template.jinja"])
    def test_a_tokenizer_s_file_of_gigabytes_stops_the_start_by_its_name(self, model, name):
        with (model / name).open("ab") as file:
            file.truncate(3 << 30)  # takes no room
        assert self.start(model).startswith(f"{model / name} has {3 << 30} bytes")

    def test_a_tokenizer_s_file_of_brackets_stops_the_start_by_its_name(self, model):
        (model / "special_tokens_map.json").write_text('{"a":' + "[" * 100_000)
        assert self.start(model).startswith(f"{model / 'special_tokens_map.json'} is nested")


class TestCode:
    """What comes with weights is never run, and what could be is never unpickled."""

    @pytest.fixture
    def trap(self, tmp_path):
        """A file that is there once code has run, and code that writes it."""
        ran = tmp_path / "ran"

        class Trap:
            def __reduce__(self):
                return Path.touch, (ran,)

        return ran, pickle.dumps(Trap())

    def test_the_trap_works(self, trap):
        ran, pickled = trap
        pickle.loads(pickled)
        assert ran.exists()

    def test_weights_in_pickles_are_not_read(self, tmp_path, trap):
        ran, pickled = trap
        model = Path(shutil.copytree(ROOT / DEMO.model, tmp_path / "model"))
        names = (
            "pytorch_model.bin",
            "model.pt",
            "consolidated.00.pth",
            "vocab.pkl",
            "training_args.bin",
        )
        for name in names:
            (model / name).write_bytes(pickled)
        read_tokenizer(model)
        (model / "model.safetensors").unlink()
        settings = demo_settings(
            model_id=str(model), transcoder_set=str(ROOT / DEMO.transcoder_set)
        )
        for engine in ("transformerlens", "nnsight"):
            with pytest.raises(ModelLoadError, match=r"holds no model\.safetensors"):
                model_loader.load(settings.model_copy(update={"model_engine": engine}))
        assert not ran.exists()

    def test_an_array_of_pickled_objects_is_not_read(self, tmp_path, trap):
        ran, pickled = trap
        text = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
        header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("W_enc.npy", header + pickled)
        with pytest.raises(WeightsError, match=r"a\.npz is damaged"):
            read_tensor(tmp_path / "a.npz", "W_enc")
        assert not ran.exists()

    @pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
    def test_code_of_a_model_s_own_is_not_run_and_nobody_is_asked(self, tmp_path, name):
        model = Path(shutil.copytree(ROOT / DEMO.model, tmp_path / "model"))
        ran = tmp_path / "ran"
        (model / "own.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
        file = model / name
        own = {
            "AutoConfig": "own.C",
            "AutoModelForCausalLM": "own.M",
            "AutoTokenizer": ["own.T", None],
        }
        file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": own}))
        program = (
            "import sys, model_loader\n"
            "from settings import Settings\n"
            "settings = Settings(_env_file=None, device='cpu', model_id=sys.argv[1],"
            " transcoder_set=sys.argv[2])\n"
            "try:\n    model_loader.load(settings)\n"
            "except model_loader.ModelLoadError as error:\n    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(model), str(ROOT / DEMO.transcoder_set)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "[y/N]" not in done.stdout + done.stderr
        assert not ran.exists()
