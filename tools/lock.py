"""Compile requirements.txt and requirements-dev.txt into lock files with hashes.

    requirements.lock       what the worker runs on
    requirements-cuda.lock  NVIDIA's libraries, which only a CUDA build of torch needs
    requirements-dev.lock   what the tests and checks need besides

Run by `make lock`; needs `uv` on the path of this interpreter.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CUDA_PACKAGE = re.compile(r"^(nvidia-|cuda-|triton)")


def compile_lock(source: str) -> list[str]:
    """The lock of a requirements file, as one entry a package, hashes and all."""
    command = ["-m", "uv", "pip", "compile", "--universal", "--python-version", "3.11"]
    options = ["--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
    done = subprocess.run(
        [sys.executable, *command, *options, source],
        cwd=ROOT,
        check=True,
        text=True,
        capture_output=True,
    )
    entries = re.split(r"^(?=[a-z0-9])", done.stdout, flags=re.MULTILINE)
    return [entry for entry in entries if entry.strip()]


def _name(entry: str) -> str:
    return entry.split("==")[0]


def main() -> None:
    runtime = compile_lock("requirements.txt")
    cuda = [entry for entry in runtime if CUDA_PACKAGE.match(entry)]
    plain = [entry for entry in runtime if not CUDA_PACKAGE.match(entry)]
    (ROOT / "requirements.lock").write_text("".join(plain))
    (ROOT / "requirements-cuda.lock").write_text("".join(cuda))
    held = {_name(entry) for entry in runtime}
    dev = [e for e in compile_lock("requirements-dev.txt") if _name(e) not in held]
    (ROOT / "requirements-dev.lock").write_text("".join(dev))


if __name__ == "__main__":
    main()
