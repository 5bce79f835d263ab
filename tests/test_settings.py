"""Settings: defaults, reading, and how a bad value stops the start."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settings import Settings, SettingsError, read_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_without_any_variable_the_documented_defaults_hold():
    settings = read_settings()
    assert settings.model_id is None
    assert settings.token_limit == 64
    assert settings.update_interval == 4
    assert settings.max_feature_nodes == 10_000
    assert settings.max_output_bytes == 10_000_000


def test_variables_are_typed(monkeypatch):
    monkeypatch.setenv("TOKEN_LIMIT", "512")
    monkeypatch.setenv("LAZY_ENCODER", "true")
    monkeypatch.setenv("UPLOAD_ALLOWED_HOSTS", "minio.internal, Store.local,")
    monkeypatch.setenv("LOG_LEVEL", "debug")
    settings = read_settings()
    assert settings.token_limit == 512
    assert settings.lazy_encoder is True
    assert settings.upload_allowed_hosts == ("minio.internal", "store.local")
    assert settings.log_level == "DEBUG"


def test_a_dotenv_file_is_read_and_the_environment_wins(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("TOKEN_LIMIT=100\nUPDATE_INTERVAL=8\n")
    monkeypatch.setenv("UPDATE_INTERVAL", "2")
    settings = read_settings()
    assert (settings.token_limit, settings.update_interval) == (100, 2)


def test_an_override_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("TOKEN_LIMIT", "100")
    monkeypatch.setenv("UPDATE_INTERVAL", "2")
    settings = read_settings(token_limit="200")
    assert (settings.token_limit, settings.update_interval) == (200, 2)


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("DEVICE", "")
    monkeypatch.setenv("TOKEN_LIMIT", "")
    assert read_settings().device is None
    assert read_settings().token_limit == 64


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKEN_LIMIT", "1"),
        ("TOKEN_LIMIT", "many"),
        ("UPDATE_INTERVAL", "0"),
        ("MODEL_DTYPE", "int8"),
        ("MODEL_ENGINE", "jax"),
        ("DEVICE", "tpu"),
        ("LAZY_DECODER", "maybe"),
        ("UPLOAD_TIMEOUT_S", "0"),
        ("LOG_LEVEL", "loud"),
        ("SERVER_PORT", "0"),
        ("SERVER_PORT", "65536"),
        ("PORT", "http"),
        ("PORT_HEALTH", "0"),
    ],
)
def test_a_bad_value_is_named_with_its_variable_and_what_would_do(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        read_settings()
    message = str(raised.value)
    assert message.startswith(f"{name}=")
    assert value.lower() in message.lower()
    description = Settings.model_fields[name.lower()].description
    assert description is not None
    assert description in message


def test_downloads_are_kept_in_hf_hub_cache_else_in_hf_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert read_settings().hub_cache == Path("/home/someone/.cache/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "/volume/hf")
    assert read_settings().hub_cache == Path("/volume/hf/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/volume/cache")
    assert read_settings().hub_cache == Path("/volume/cache")


def test_the_hub_s_token_is_the_variable_s_else_the_file_s(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    assert read_settings().hub_token() is None
    (tmp_path / "token").write_text("from-the-file\n")
    assert read_settings().hub_token() == "from-the-file"
    monkeypatch.setenv("HF_TOKEN", "from-the-variable")
    assert read_settings().hub_token() == "from-the-variable"


def test_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hub-token-value")
    monkeypatch.setenv("SECRET", "door-secret-value")
    settings = read_settings()
    assert "hub-token" not in repr(settings)
    assert "door-secret" not in repr(settings)
    assert settings.hf_token is not None
    assert settings.hf_token.get_secret_value() == "hub-token-value"


SECRETS = ["HF_TOKEN", "SECRET", "SENTRY_DSN"]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "value",
    [
        " ",
        "\n",
        "\t \r\n",
        "\u00a0",
        "planted ",
        " planted",
        "planted\n",
        "planted\r\nX: y",
        "pla\x7fnted",
    ],
)
def test_a_secret_that_no_one_can_send_is_refused_and_not_shown(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"^{name}=\*\*\*: ") as raised:
        read_settings()
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_have_spaces_within_and_any_letters(monkeypatch, name):
    monkeypatch.setenv(name, "https://correct horse/battery é")
    value = getattr(read_settings(), name.lower())
    assert value.get_secret_value() == "https://correct horse/battery é"


def test_every_setting_that_is_a_secret_is_looked_at():
    fields = Settings.model_fields.items()
    assert {name.upper() for name, field in fields if "Secret" in str(field)} == set(SECRETS)


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="\0")))
def test_any_text_as_token_limit_is_a_limit_or_a_settings_error(value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKEN_LIMIT", value)
        try:
            assert read_settings().token_limit >= 2
        except SettingsError as error:
            assert "TOKEN_LIMIT" in str(error)


@pytest.mark.parametrize(
    ("entry", "advice"),
    [
        ("minio.internal:9000", "leave out the port"),
        ("10.0.0.1:9000", "leave out the port"),
        ("[::1]", "leave out the brackets"),
        ("[::1]:9000", "leave out the brackets and a port"),
        ("http://minio.internal", "leave out the scheme"),
        ("minio.internal/bucket", "leave out the path"),
        ("10.0.0.0/8", "a network can't be named"),
        ("*.internal", "there are no wildcards"),
        ("minio internal", "commas separate hosts"),
        ("user@minio.internal", "leave out the user"),
        ("fe80::1%eth0", "leave out the scope"),
        ("exämple.org", "write the name in ASCII"),
        ("minio.internal.", "leave out the dot"),
        ("minio..internal", "between dots"),
        ("-minio.internal", "between dots"),
        ("a" * 64 + ".internal", "between dots"),
        ("minio,internal;other", "between dots"),
    ],
)
def test_an_upload_host_that_no_url_can_have_stops_the_start_by_name(monkeypatch, entry, advice):
    monkeypatch.setenv("UPLOAD_ALLOWED_HOSTS", f"store.local,{entry}")
    with pytest.raises(SettingsError) as raised:
        read_settings()
    message = str(raised.value)
    assert message.startswith("UPLOAD_ALLOWED_HOSTS=")
    assert entry.rpartition(",")[2] in message
    assert advice in message


def test_upload_hosts_are_names_and_addresses_in_lower_case(monkeypatch):
    monkeypatch.setenv(
        "UPLOAD_ALLOWED_HOSTS", "MinIO, a_b.Internal, xn--exmple-cua.org, ::1, 10.0.0.1"
    )
    hosts = ("minio", "a_b.internal", "xn--exmple-cua.org", "::1", "10.0.0.1")
    assert read_settings().upload_allowed_hosts == hosts
