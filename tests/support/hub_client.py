"""Asks for weights in a process whose Hugging Face client talks to the hub of its environment.

The client reads the environment once, so the tests' own process can't. A line of JSON in, one out.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.polling import LONGEST_S
from tests.support.programs import ROOT

_ASIDE = ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HOME", "HF_HUB_CACHE")


class HubClient:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, what: str, reference: str, **settings: Any) -> dict[str, Any]:
        """What `sources.<what>(reference)` finds under these settings, or its error.

        Of "load" it is the error of loading the model of that name.
        """
        n_layers = settings.pop("n_layers", None)
        request = {"what": what, "reference": reference, "n_layers": n_layers}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**request, "settings": settings}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def start_command(
    *arguments: str, url: str = "http://127.0.0.1:9", **environment: str
) -> subprocess.Popen[str]:
    """A command of `model_loader.py` that has begun, with the hub at this address."""
    aside = {"HF_HUB_OFFLINE", "HF_TOKEN", "MODEL_ID", "TRANSCODER_SET"}
    kept = {name: value for name, value in os.environ.items() if name not in aside}
    return subprocess.Popen(
        [sys.executable, "model_loader.py", *arguments],
        cwd=ROOT,
        env={**kept, "HF_ENDPOINT": url, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same, when it has ended."""
    with start_command(*arguments, **environment) as process:
        output, errors = process.communicate(timeout=LONGEST_S)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


@contextmanager
def hub_client(url: str) -> Iterator[HubClient]:
    environment = {name: value for name, value in os.environ.items() if name not in _ASIDE}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.hub_client"],
        cwd=ROOT,
        env={**environment, "HF_ENDPOINT": url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield HubClient(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(LONGEST_S)


def _serve() -> None:
    import model_loader
    from loading import WeightsError, sources
    from settings import Settings

    for line in sys.stdin:
        request = json.loads(line)
        settings = Settings(_env_file=None, **request["settings"])
        storage = sources.storage_of(settings)
        try:
            if request["what"] == "load":
                loaded = settings.model_copy(update={"model_id": request["reference"]})
                answer: dict[str, Any] = {"name": model_loader.load(loaded).name}
            elif request["what"] == "model":
                found = sources.model_files(request["reference"], storage)
                answer = {"folder": str(found.folder), "source": found.source}
            else:
                files = sources.transcoder_files(request["reference"], storage, request["n_layers"])
                layers = [str(path) for path in files.paths]
                answer = {"folder": str(files.folder), "source": files.source, "layers": layers}
                answer["revisions"] = files.revisions
        except (WeightsError, model_loader.ModelLoadError) as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        answer["torch"] = "torch" in sys.modules
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
    os._exit(0)  # to take the libraries down in order needs seconds, on a busy machine a minute
