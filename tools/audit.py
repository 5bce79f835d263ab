"""Compare the locked packages with a database of known vulnerabilities: `make audit`.

    python -m tools.audit [OPTIONS of `uv audit`]

uv asks OSV (https://osv.dev), which holds PyPI's advisories too, for each package that a lock file
has. Exit status: 0, none is known; 1, there are some, which uv prints; 2, nothing was compared.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-cuda.lock", "requirements-dev.lock")
_PREVIEW = ("--preview-features", "audit-command")  # uv calls the command experimental


def pins(lock: str) -> list[str]:
    """The packages of a lock file, each with its version and the systems that it is for."""
    return [
        line.removesuffix("\\").strip()
        for line in lock.splitlines()
        if line and not line.startswith((" ", "#"))
    ]


def script(pinned: Iterable[str]) -> str:
    """A script that needs these packages, in the form that uv reads (PEP 723)."""
    needs = "".join(f"#   {pin!r},\n" for pin in pinned)
    return (
        f'# /// script\n# requires-python = ">=3.11,<3.13"\n# dependencies = [\n{needs}# ]\n# ///\n'
    )


def main(options: Sequence[str] | None = None, folder: Path = ROOT) -> int:
    """Audit the lock files of a folder; returns the exit status."""
    options = sys.argv[1:] if options is None else options
    pinned = [pin for lock in LOCKS for pin in pins((folder / lock).read_text())]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "locked.py"
        file.write_text(script(pinned))
        command = [sys.executable, "-m", "uv", "audit", *_PREVIEW, "--script", str(file), *options]
        done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE)
    print(done.stdout, end="")
    # uv ends with 1 as well where it finds no such packages, and then reports nothing.
    if done.returncode == 0 or (done.returncode == 1 and done.stdout.strip()):
        return done.returncode
    print(
        f"Nothing was audited: the {len(pinned)} locked packages could not be compared with a "
        "database of vulnerabilities (uv says why above). If it can't be reached from here, run "
        "`make audit` where api.osv.dev and the package index can be.",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
