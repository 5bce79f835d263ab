"""The settings of the client."""

from pathlib import Path

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from remote.client import RUNPOD_URL
from remote.errors import WrongTarget
from remote.labels.neuronpedia import URL as NEURONPEDIA_URL


class ClientSettings(BaseSettings):
    """What the client reads from the environment, or from a `.env` file."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", env_ignore_empty=True)

    runpod_api_key: SecretStr | None = None
    runpod_endpoint_base_url: str = RUNPOD_URL  # Runpod's SDK reads the same variable
    secret: SecretStr | None = None
    feature_labels: bool = False  # whether labels are fetched without --labels
    neuronpedia_url: str = NEURONPEDIA_URL
    neuronpedia_api_key: SecretStr | None = None
    xdg_cache_home: Path | None = None  # labels are kept in here


def read_settings() -> ClientSettings:
    """Read and check them.

    Raises:
        WrongTarget: one is not of its type, or the `.env` file can't be read as text.
    """
    try:
        return ClientSettings()
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        name = str(found["loc"][0]).upper()
        raise WrongTarget(f"{name} is {found['input']!r}: {found['msg']}") from None
    except UnicodeDecodeError:
        raise WrongTarget("the file .env is not UTF-8; save it as UTF-8") from None
