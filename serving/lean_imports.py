"""Importing the libraries without what they bring along and the worker never uses.

Imports take most of a start, and half of that goes into modules for notebooks, training and command
lines. While `lean_imports()` is active, whoever imports a module of DEFERRED gets a stand-in, and
the members of a stand-in are stand-ins too. The first use of a member imports the real module, and
ends the deferring. Afterwards every import finds the real modules; stand-ins remain only under the
names that libraries gave them meanwhile.
"""

import gc
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Union

# Modules that are deferred, with all below them; after each, the library that asks for it.
DEFERRED = frozenset(
    {
        "datasets",  # transformer_lens, for sample data; brings pandas and pyarrow.dataset
        "pandas",  # transformer_lens.patching, for tables of results
        "paramiko",  # runpod, for its command line's SSH keys
        "transformer_lens.model_bridge",  # transformer_lens: another kind of model than ours
        # transformers' own models and what runs them; they bring torch._dynamo, triton, sympy.
        "transformers.generation.utils",
        "transformers.model_debugging_utils",
        "transformers.modeling_utils",
        "transformers.models.auto.feature_extraction_auto",
        "transformers.models.auto.modeling_auto",
        "transformers.models.bert.modeling_bert",
        "transformers.models.hubert.modeling_hubert",
        "transformers.models.olmo2.modeling_olmo2",
        "transformers.models.t5.modeling_t5",
        "transformers.models.wav2vec2.modeling_wav2vec2",
    }
)


def import_lean(*modules: str) -> None:
    """Import modules, and with them the libraries, without what is deferred.

    For a process that keeps them. What is imported is exempt from garbage collection afterwards:
    otherwise each job would pay for the collector's way through hundreds of thousands of objects.
    """
    gc.disable()
    try:
        with lean_imports(), _models_scanned_once():
            for module in modules:
                importlib.import_module(module)
        gc.freeze()
    finally:
        gc.enable()


@contextmanager
def lean_imports() -> Iterator[None]:
    """Defer, in the whole process, the modules of DEFERRED that aren't imported yet."""
    cpu_info = ModuleType("cpuinfo")
    vars(cpu_info)["get_cpu_info"] = _cpu_info
    # None means that there is none: libraries ask only whether they run in a notebook or a test.
    replaced: dict[str, Any] = {"cpuinfo": cpu_info, "IPython": None, "pytest": None}
    replaced = {name: module for name, module in replaced.items() if name not in sys.modules}
    sys.modules |= replaced
    sys.meta_path.insert(0, _Finder())
    try:
        yield
    finally:
        _stop_deferring()
        for name in replaced:
            del sys.modules[name]


@contextmanager
def _models_scanned_once() -> Iterator[None]:
    """Have transformers read the files of its models once.

    It does so for `transformers` and again for `transformers.models`, since it keeps what it found
    under the path that it was given: first the folder, then a file in the folder.
    """
    import_utils = importlib.import_module("transformers.utils.import_utils")
    scan = import_utils.create_import_structure_from_path

    def scan_folder(path: str | Path) -> Any:
        return scan(Path(path).parent if Path(path).is_file() else Path(path))

    vars(import_utils)[scan.__name__] = scan_folder
    try:
        yield
    finally:
        vars(import_utils)[scan.__name__] = scan


def _cpu_info() -> dict[str, str]:
    """The processor's name, for runpod: py-cpuinfo takes a second and subprocesses to find it."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", path.read_text(), re.M) if path.exists() else None
    return {"brand_raw": found[1]} if found else {}


class _Finder(MetaPathFinder, Loader):
    """Finds stand-ins for the modules that are deferred."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        deferred = any(f"{fullname}.".startswith(f"{name}.") for name in DEFERRED)
        return ModuleSpec(fullname, self, is_package=True) if deferred else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the real module is executed when it is used."""


class _StandIn(ModuleType):
    """Stands in for a module."""

    def __getattr__(self, name: str) -> Any:
        if not _is_deferring():
            return getattr(importlib.import_module(self.__name__), name)
        if name.startswith("__"):
            raise AttributeError(name)
        return _Member(self.__name__, name)


class _Member:
    """Stands in for a member of a module. Whatever is done with it is done with the real one."""

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def _real(self) -> Any:
        _stop_deferring()
        return getattr(importlib.import_module(self._module), self._name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)  # a class is derived from it

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007 - in an annotation, which nothing evaluates

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007


def _is_deferring() -> bool:
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def _stop_deferring() -> None:
    """Have imports find the real modules, and take the stand-ins from where imports look."""
    if not _is_deferring():
        return
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for name, module in list(sys.modules.items()):
        if isinstance(module, _StandIn):
            del sys.modules[name]
            package, _, member = name.rpartition(".")
            holder = sys.modules.get(package)
            if holder is not None and vars(holder).get(member) is module:
                delattr(holder, member)
        elif name.startswith("transformers") and type(module) is not ModuleType:
            # These packages look their members up on demand and keep what they find.
            for member in [n for n, m in vars(module).items() if isinstance(m, _Member)]:
                delattr(module, member)
