"""The environment, read once and typed. No other module reads it.

Each setting comes from the variable of its name, or from a `.env` file in the working directory.
"""

import os
import re
import unicodedata
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# Each of them decides how OpenMP's threads wait: the standard's variable, GNU's (whose OpenMP is in
# torch's wheels for Linux) and LLVM's.
_WAITING_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

# A name as it can stand in a URL, in lower case.
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")

# The release in work; pyproject.toml has the same.
VERSION = "0.1.0"


class SettingsError(Exception):
    """A variable has a value that can't be used. The message names both and says what is valid."""


class Settings(BaseSettings):
    """Every setting of the worker; docs/settings.md has a row for each of these fields."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    model_id: str | None = Field(
        None, description="Hugging Face id, short name or directory; unset: the demo model"
    )
    transcoder_set: str | None = Field(
        None, description="Hugging Face id, short name or directory; unset: the model's own set"
    )
    attribution_engine: Literal["circuit-tracer", "lm-saes-crm"] | None = Field(
        None,
        description="`circuit-tracer`, or `lm-saes-crm` for complete sets; unset: what the set is",
    )
    sae_repo: str | None = Field(
        None, description="a complete set's repository or directory, as Neuronpedia names it"
    )
    sae_expansion: str | None = Field(None, description="a complete set's expansion, such as `8x`")
    sae_topk: str | None = Field(None, description="a complete set's top-k, such as `k64`")
    np_model_id: str | None = Field(
        None, description="Neuronpedia's name of the model, in graphs; unset: the known one"
    )
    np_transcoder_source_set: str | None = Field(
        None, description="Neuronpedia's name of the transcoders, in graphs; unset: the known one"
    )
    np_lorsa_source_set: str | None = Field(
        None, description="Neuronpedia's name of the Lorsas, in graphs; unset: the known one"
    )
    model_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="dtype of the weights; unset: the model's own on a GPU, float32 on a CPU"
    )
    device: str | None = Field(
        None,
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="`cpu`, `cuda` or `cuda:N`; unset: the GPU if there is one",
    )
    model_engine: Literal["transformerlens", "nnsight"] | None = Field(
        None, description="`transformerlens` or `nnsight`; unset: the model's own"
    )
    cpu_threads: int | None = Field(
        None,
        ge=1,
        description="threads that compute on the CPU; unset: what the container may use; "
        "`OMP_NUM_THREADS` wins",
    )
    lazy_encoder: bool | None = Field(
        None, description="leave encoder weights on disk until read; unset: the model's own"
    )
    lazy_decoder: bool | None = Field(
        None, description="leave decoder weights on disk until read; unset: the model's own"
    )
    token_limit: int = Field(
        64, ge=2, description="most tokens of a graph's or steer's prompt, BOS included"
    )
    max_feature_nodes: int = Field(
        10_000, ge=1, description="default of a request's `max_feature_nodes`"
    )
    update_interval: int = Field(
        4, ge=1, description="batches of features between two rankings of what to expand next"
    )
    max_output_bytes: int = Field(
        10_000_000, ge=1, description="largest job output; larger graphs need a `signed_url`"
    )
    graph_cache_bytes: int = Field(
        2_000_000_000, ge=0, description="memory for finished attributions; 0 keeps none"
    )
    upload_allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="comma-separated hosts, without ports, exempt from the public-address rule "
        "for uploads",
    )
    upload_timeout_s: float = Field(
        120.0, gt=0, description="seconds without progress before an upload attempt is given up"
    )
    jobs_at_once: int = Field(
        1, ge=1, description="jobs taken from Runpod at once; one has the model, the others wait"
    )
    shutdown_grace_s: float = Field(
        5.0, ge=0, description="seconds a running job may go on for after SIGTERM"
    )
    hf_token: SecretStr | None = Field(None, description="Hugging Face token for gated models")
    hf_token_path: str = Field(
        "/run/secrets/hf_token", description="file that holds the token, if HF_TOKEN is unset"
    )
    hf_home: str = Field(
        "~/.cache/huggingface", description="where Hugging Face files are kept, in `hub`"
    )
    hf_hub_cache: str | None = Field(
        None, description="where downloads are kept; unset: `hub` in HF_HOME"
    )
    image_weights: str = Field(
        "/app/weights", description="weights in the image, laid out as in HF_HUB_CACHE"
    )
    runpod_model_cache: str = Field(
        "/runpod-volume/huggingface-cache/hub", description="where Runpod puts cached models"
    )
    secret: SecretStr | None = Field(
        None, description="what `x-secret-key` must be over HTTP; unset: loopback only"
    )
    server_host: str = Field("0.0.0.0", description="address that `start.py` listens on")  # noqa: S104
    server_port: int = Field(5004, ge=1, le=65535, description="port that `start.py` listens on")
    port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port of a load-balancing endpoint; it wins over SERVER_PORT, and needs SECRET",
    )
    port_health: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port on which `start.py` answers `/ping` alone; unset: `/ping` is on PORT",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least severe log lines that are written"
    )
    sentry_dsn: SecretStr | None = Field(
        None, description="where Sentry takes reports of the worker's own faults; unset: none"
    )
    worker_version: str = Field(VERSION, description="set by the image: its version")
    worker_revision: str | None = Field(
        None, description="set by the image: the commit that it was built from"
    )
    runpod_webhook_get_job: str | None = Field(
        None, description="set by Runpod on its hosts; unset means a local run"
    )
    runpod_webhook_post_output: str | None = Field(
        None, description="set by Runpod on its hosts; unset means that no progress is posted"
    )
    runpod_gpu_count: int | None = Field(
        None, ge=0, description="set by Runpod on its hosts; above 0 a worker without a GPU ends"
    )

    @property
    def listening_port(self) -> int:
        """The port of the HTTP door's paths."""
        return self.server_port if self.port is None else self.port

    @property
    def logs_as_json(self) -> bool:
        """Whether log lines are JSON: on Runpod's hosts, whichever kind of endpoint it is."""
        return self.runpod_webhook_get_job is not None or self.port is not None

    @property
    def hub_cache(self) -> Path:
        """The directory that downloads are kept in."""
        return Path(self.hf_hub_cache or f"{self.hf_home}/hub").expanduser()

    def hub_token(self) -> str | None:
        """The Hugging Face token, from the environment or its file."""
        if self.hf_token is not None:
            return self.hf_token.get_secret_value()
        try:
            return Path(self.hf_token_path).expanduser().read_text().strip() or None
        except OSError:
            return None

    def export_hub_variables(self) -> None:
        """Set HF_HOME for the Hugging Face libraries, which read no `.env` file.

        To be called before their first import: they read the environment once.
        """
        os.environ["HF_HOME"] = self.hf_home

    def export_thread_variables(self, available: int | None) -> None:
        """Set how many threads OpenMP, which computes for torch, has and how they wait.

        Variables that are set already stay as they are. To be called before torch's first import,
        since OpenMP reads the environment once, and only in a process that is the worker.

        Args:
            available: the number of threads if CPU_THREADS is unset; None leaves it to torch.
        """
        threads = self.cpu_threads or available
        if threads is not None and not os.environ.get("OMP_NUM_THREADS"):
            os.environ["OMP_NUM_THREADS"] = str(threads)  # numpy's as well
        if not any(os.environ.get(name) for name in _WAITING_VARIABLES):
            os.environ["OMP_WAIT_POLICY"] = "passive"

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("hf_token", "secret", "sentry_dsn")
    @classmethod
    def _as_it_is_sent(cls, value: SecretStr | None) -> SecretStr | None:
        """Refuse what no caller can send or no server accepts, such as a file's last newline."""
        text = "" if value is None else value.get_secret_value()
        if text != text.strip():
            raise ValueError("it begins or ends with whitespace")
        if any(unicodedata.category(character) == "Cc" for character in text):
            raise ValueError("it has a control character, such as a newline")
        return value

    @field_validator("attribution_engine", mode="before")
    @classmethod
    def _with_hyphens(cls, value: object) -> object:
        return value.replace("_", "-") if isinstance(value, str) else value

    @field_validator("model_id", "transcoder_set", "sae_repo")
    @classmethod
    def _expand_home(cls, value: str | None) -> str | None:
        # Not through a Path, which would make `hf://` into `hf:/`.
        return value if value is None else os.path.expanduser(value)  # noqa: PTH111

    @field_validator("upload_allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(host.strip().lower() for host in value.split(",") if host.strip())
        return value

    @field_validator("upload_allowed_hosts")
    @classmethod
    def _refuse_what_is_no_host(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if (fault := _no_host(host)) is not None:
                raise ValueError(f"{host!r} can't be the host of a URL: {fault}")
        return value


def read_settings(**overrides: str | None) -> Settings:
    """Read the environment anew.

    Args:
        overrides: settings by name, which win over the environment; None is "unset".

    Raises:
        SettingsError: a value can't be used. The message names each such variable, its value
            (but not a secret's) and the bound.
    """
    try:
        return Settings(**cast(Any, overrides))
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(detail) for detail in error.errors())) from None


@cache
def get_settings() -> Settings:
    """The process's settings."""
    return read_settings()


def how_threads_wait() -> str:
    """The variables that decide how OpenMP's threads wait for each other, as they are now."""
    values = {name: os.environ.get(name) for name in _WAITING_VARIABLES}
    chosen = ", ".join(f"{name}={value}" for name, value in values.items() if value)
    return chosen or "waiting as OpenMP does by default"


def _no_host(entry: str) -> str | None:
    """Why no URL has this host, which is in lower case; None where one can have it."""
    try:
        if ip_address(entry) and "%" not in entry:
            return None
    except ValueError:
        pass
    faults = (
        (r"\s", "it has a space; commas separate hosts"),
        (r"://", "leave out the scheme"),
        (r"/", "leave out the path; a network can't be named, only a host"),
        (r"@", "leave out the user"),
        (r"[*?]", "there are no wildcards; name each host"),
        (r"[][]", "leave out the brackets and a port"),
        (r"%", "leave out the scope"),
        (r":", "leave out the port; a host is exempt on all of them"),
        (r"[^!-~]", "write the name in ASCII, as URLs have it (xn--...)"),
        (r"\.$", "leave out the dot at its end"),
    )
    for pattern, fault in faults:
        if re.search(pattern, entry):
            return fault
    if not _HOST.fullmatch(entry) or len(entry) > 253:
        return "a name has parts of letters, digits, - and _, between dots, of 1 to 63 characters"
    return None


def _explain(detail: Any) -> str:
    field = str(detail["loc"][0])
    is_secret = SecretStr in get_args(Settings.model_fields[field].annotation)
    value = "***" if is_secret else repr(detail["input"])
    wanted = Settings.model_fields[field].description
    return f"{field.upper()}={value}: {detail['msg']} ({wanted})"
