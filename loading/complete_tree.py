"""Where a complete set's modules are: the tree of folders that one expansion and top-k has.

A set is named `<root>/<expansion>/<top-k>`, as in `OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B/8x/k64`.
Its modules are the folders in `<root>/transcoder/8x/k64` and `<root>/lorsa/8x/k64`. What those are
called doesn't matter: `config.json` in each says what it is. Importing this module imports no
torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath

from loading.complete_config import MODULE_CONFIG, ModuleKind, read_module_config
from loading.complete_files import WEIGHTS, refuse_other_formats, weights_among, weights_in
from loading.model_folder import ANY_MODEL, ModelConfig
from loading.needs import Needs
from loading.references import Reference
from loading.transcoder_folder import check_shape

KINDS: tuple[ModuleKind, ...] = ("transcoder", "lorsa")

_USUAL = re.compile(r"\d+(\.\d+)?x/k\d+")  # an expansion and a top-k, as published sets name them
_DEPTH = 2  # folders that name a set in its tree


@dataclass(frozen=True)
class CompleteNeeds(Needs):
    """Of a complete set: the two files of each module of one expansion and top-k."""

    part: str  # "8x/k64"
    kinds: tuple[ModuleKind, ...] = KINDS
    model: ModelConfig = ANY_MODEL

    def describing(self, names: Collection[str], /) -> Collection[str]:
        return [f"{module}/{MODULE_CONFIG}" for module in _modules(names, self.part, self.kinds)]

    def files(self, names: Collection[str], folder: Path, /) -> list[str]:
        """The files to download. What isn't served is refused before that."""
        self._check(folder)
        wanted = []
        for module in _modules(names, self.part, self.kinds):
            beside = {n.removeprefix(f"{module}/") for n in names if n.startswith(f"{module}/")}
            weights = weights_among(beside) or WEIGHTS[0]
            refuse_other_formats(PurePosixPath(module, weights))
            wanted += [f"{module}/{MODULE_CONFIG}", f"{module}/{weights}"]
        return wanted

    def missing(self, folder: Path) -> list[str]:
        here = module_folders(folder, self.part, self.kinds)
        most = self.model.n_layers or max(map(len, here.values()))
        missing = []
        for kind, modules in here.items():
            if len(modules) < max(most, 1):
                missing.append(self._first_absent(folder, kind, most))
            # Of a broken download a link may be there whose file isn't.
            for module in modules:
                if weights_in(module) is None:
                    missing.append((module / WEIGHTS[0]).relative_to(folder).as_posix())
        if not missing:
            self._check(folder)
        return missing

    def _check(self, folder: Path) -> None:
        """Raise WeightsError for a module that isn't served, or that isn't for the model."""
        here = module_folders(folder, self.part, self.kinds).values()
        covered = max(min(map(len, here)), self.model.n_layers or 0)  # too few: an incomplete copy
        for module in chain(*here):
            width = read_module_config(module / MODULE_CONFIG).config.d_model
            check_shape(covered, self.model.n_layers, width, self.model.d_model)

    def _first_absent(self, folder: Path, kind: ModuleKind, n_layers: int) -> str:
        """The first module that is absent under the name that published sets would give it."""
        suffix = f"{kind}_{self.part.replace('/', '_')}"
        names = [f"{kind}/{self.part}/layer{layer}_{suffix}" for layer in range(n_layers or 1)]
        absent = (name for name in names if not (folder / name / MODULE_CONFIG).exists())
        return f"{next(absent, names[-1])}/{MODULE_CONFIG}"


def module_folders(
    root: Path, part: str, kinds: Iterable[ModuleKind] = KINDS
) -> dict[ModuleKind, list[Path]]:
    """The folders below a root that hold a module's configuration, by the folder they are in."""
    return {
        kind: sorted(file.parent for file in (root / kind / part).glob(f"*/{MODULE_CONFIG}"))
        for kind in kinds
    }


def split_directory(name: str) -> tuple[Path, str] | None:
    """The root and the part of a set in a local directory; None where there is no such set."""
    path = Path(name)
    root, part = path.parent.parent, "/".join(path.parts[-_DEPTH:])
    return (root, part) if any((root / kind / part).is_dir() for kind in KINDS) else None


def split_reference(reference: Reference) -> tuple[Reference, str] | None:
    """The root and the part that a reference to a repository would name; None if it is too short.

    The name doesn't tell whether there is such a set.
    """
    folders = reference.path.split("/")
    if len(folders) < _DEPTH:
        return None
    root = "/".join(folders[:-_DEPTH])
    return replace(reference, path=root), "/".join(folders[-_DEPTH:])


def is_usual(part: str) -> bool:
    """Whether a part is called as those of published complete sets are."""
    return _USUAL.fullmatch(part) is not None


def holds_part(names: Collection[str], part: str) -> bool:
    """Whether there are modules of a part among the files of a root."""
    return bool(_modules(names, part, KINDS))


def parts_in(root: Path) -> list[str]:
    """The parts that a directory has, `8x/k64` each."""
    found = {
        folder.relative_to(root / kind).as_posix()
        for kind in KINDS
        for folder in (root / kind).glob("*/*")
        if any(folder.glob(f"*/{MODULE_CONFIG}"))
    }
    return sorted(found)


def _modules(names: Collection[str], part: str, kinds: Iterable[ModuleKind]) -> list[str]:
    folder = "|".join(kinds)
    pattern = re.compile(rf"((?:{folder})/{re.escape(part)}/[^/]+)/{re.escape(MODULE_CONFIG)}")
    found = (pattern.fullmatch(name) for name in names)
    return sorted(match[1] for match in found if match)
