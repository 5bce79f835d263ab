"""Importing the libraries without what they bring along and the worker never uses.

Imports are most of what a start takes, and half of that is for notebooks, training, plotting and
command lines. Inside `lean_imports()` the modules of DEFERRED are not imported: whoever asks for
one gets a stand-in, and from that stand-ins of its members, each of which turns to the real one on
its first use. Afterwards every import finds the real modules again; stand-ins remain only as the
names that the libraries bound meanwhile.

Nothing here happens by importing this module: only the doors enter `lean_imports()`.
"""

import gc
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, Union

# Modules, and all below them, that are imported on first use; after each what asks for it.
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

# Modules that libraries try to import only to learn whether they run in a notebook or a test.
REFUSED = frozenset({"IPython", "pytest"})

# runpod asks it for the processor's name, which it finds out in a second and some subprocesses.
_CPU_INFO = "cpuinfo"

# It reads the 1,400 files of transformers' models for the names in them, and then reads them again.
_MODEL_SCANNER = "transformers.utils.import_utils"


@contextmanager
def lean_imports() -> Iterator[None]:
    """Defer, meanwhile and in this process, the modules of DEFERRED that aren't imported yet.

    To be entered around imports. What other threads import meanwhile is deferred as well.
    """
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _forget_stand_ins()


def import_lean(*modules: str) -> None:
    """Import modules, and with them the libraries, without what is deferred.

    For a process that keeps them: what is there afterwards is exempt from garbage collection,
    which would otherwise go through hundreds of thousands of objects time and again, in every job.
    """
    gc.disable()
    try:
        with lean_imports():
            for module in modules:
                importlib.import_module(module)
        gc.freeze()
    finally:
        gc.enable()


class _Finder(MetaPathFinder, Loader):
    """Finds stand-ins for what is deferred, and no module for what is refused."""

    def __init__(self) -> None:
        self.wanted: set[str] = set()  # deferred names that turned out to be used

    def defers(self, module: str) -> bool:
        """Whether that module is to be left alone now."""
        return self in sys.meta_path and _deferred_name(module) not in {None, *self.wanted}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname in REFUSED or fullname == _CPU_INFO:
            # What is refused is found and can't be imported: libraries look first, by find_spec.
            return ModuleSpec(fullname, self)
        if self.defers(fullname):
            return ModuleSpec(fullname, self, is_package=True)
        if fullname == _MODEL_SCANNER:
            spec = PathFinder.find_spec(fullname, path)
            if spec is not None and spec.origin is not None:
                spec.loader = _QuickScanner(fullname, spec.origin)
            return spec
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        if spec.name in REFUSED:
            raise ModuleNotFoundError(f"{spec.name} is not imported here", name=spec.name)
        return _StandInCpuInfo(spec.name) if spec.name == _CPU_INFO else _StandIn(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the real module is executed when it is used."""


class _StandIn(ModuleType):
    """Stands in for a module; as long as it is deferred its members are stand-ins as well."""

    def __init__(self, name: str, finder: "_Finder") -> None:
        super().__init__(name)
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if not self._finder.defers(self.__name__):
            return getattr(_real_module(self.__name__), name)
        if name.startswith("__"):
            raise AttributeError(name)
        return _Member(self.__name__, name)


class _Member:
    """Stands in for a member of a module, and turns to it for whatever is done with it."""

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def _real(self) -> Any:
        return getattr(_real_module(self._module), self._name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)  # somebody derives a class from it

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007 - in an annotation, which nothing evaluates

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007


class _StandInCpuInfo(ModuleType):
    """As much of py-cpuinfo as runpod asks for, from the file where it is written."""

    @staticmethod
    def get_cpu_info() -> dict[str, str]:
        path = Path("/proc/cpuinfo")
        found = (
            re.search(r"^model name\s*: (.+)$", path.read_text(), re.M) if path.exists() else None
        )
        return {"brand_raw": found[1]} if found else {}


class _QuickScanner(SourceFileLoader):
    """Loads transformers' scanner so that it scans a directory once, a file from `__all__` on."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        scan = getattr(module, "create_import_structure_from_path", None)
        names_in = getattr(module, "fetch__all__", None)
        if scan is None or names_in is None:  # another release; it scans as it likes
            return
        kept = cache(scan)

        def scan_once(module_path: str | Path) -> Any:
            path = Path(module_path)
            return kept(str(path.parent if path.is_file() else path))

        def names_from_all(file_content: str) -> Any:
            return names_in(file_content[max(file_content.find("\n__all__"), 0) :])

        vars(module).update(
            create_import_structure_from_path=scan_once, fetch__all__=names_from_all
        )


def _deferred_name(module: str) -> str | None:
    """The entry of DEFERRED that `module` is or is below."""
    return next((d for d in DEFERRED if module == d or module.startswith(f"{d}.")), None)


def _real_module(name: str) -> ModuleType:
    """Import a deferred module after all, also while `lean_imports()` is on."""
    deferred = _deferred_name(name)
    for finder in sys.meta_path:
        if isinstance(finder, _Finder) and deferred not in finder.wanted:
            finder.wanted.add(str(deferred))
            _forget_stand_ins(str(deferred))
    return importlib.import_module(name)


def _forget_stand_ins(below: str | None = None) -> None:
    """Take stand-ins out of where imports look: `sys.modules` and the packages that hold them."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, _StandIn | _StandInCpuInfo) and below in {None, _deferred_name(name)}:
            del sys.modules[name]
            package = sys.modules.get(name.rpartition(".")[0])
            if package is not None and vars(package).get(name.rpartition(".")[2]) is module:
                delattr(package, name.rpartition(".")[2])
    # Packages that look their members up on demand, as transformers does, keep what they found.
    for package in {sys.modules.get(p) for name in DEFERRED for p in _parents(name)} - {None}:
        if type(package) is not ModuleType:
            for name in [n for n, member in vars(package).items() if type(member) is _Member]:
                delattr(package, name)


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]
