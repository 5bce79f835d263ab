"""The rooms of the code and the import arrows between them: `python -m tools.house [FOLDER]`.

A room is a folder of the repository, or a module beside them. An arrow points from what imports to
what is imported. A circle of modules, or an arrow to a room further up than its own, is named.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

# From the doors down to the ground: a room imports only from rooms further down.
ROOMS = (
    "handler",
    "start",
    "client",
    "serving",
    "actions",
    "steering",
    "model_loader",
    "loading",
    "graphs",
    "attribution",
    "remote",
    "viewer",
    "prompting",
    "delivery",
    "schemas",
    "contract",
    "settings",
    "errors",
    "logs",
    "web_assets",
)

# These use the rooms, and no room uses them.
OUTSIDE = ("demo", "benchmarks", "tools", "tests")


@dataclass(frozen=True)
class House:
    """Modules by dotted name: their lines, and the modules that each imports."""

    lines: dict[str, int]
    imports: dict[str, set[str]]

    def arrows(self) -> Counter[tuple[str, str]]:
        """How many imports lead from one room to another."""
        pairs = (
            (room_of(module), room_of(imported))
            for module, all_imported in self.imports.items()
            for imported in all_imported
        )
        return Counter((room, other) for room, other in pairs if room != other)

    def circles(self) -> list[list[str]]:
        """Modules that import one another, directly or through others."""
        reached = {module: set(self._reached(module)) for module in self.imports}
        groups = {
            tuple(sorted(m for m in reached[module] if module in reached[m]))
            for module in self.imports
            if module in reached[module]
        }
        return [list(group) for group in sorted(groups)]

    def _reached(self, module: str) -> Iterator[str]:
        seen: set[str] = set()
        waiting = list(self.imports[module])
        while waiting:
            imported = waiting.pop()
            if imported not in seen:
                seen.add(imported)
                yield imported
                waiting += self.imports[imported]


def room_of(module: str) -> str:
    return module.partition(".")[0]


def read_house(root: Path, *, without: Iterable[str] = OUTSIDE) -> House:
    """The modules under `root`, but for those of the rooms in `without`."""
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted([*root.glob("*.py"), *root.glob("[a-z]*/**/*.py")])
        if path.relative_to(root).parts[0] not in without
    }
    trees = {module: ast.parse(path.read_text()) for module, path in files.items()}
    lines = {module: len(path.read_text().splitlines()) for module, path in files.items()}
    imports = {module: set(_imported(tree, files)) - {module} for module, tree in trees.items()}
    return House(lines, imports)


def _imported(tree: ast.AST, modules: Iterable[str]) -> Iterator[str]:
    """The modules of the house that a tree imports, in functions too; not what only types need."""
    known = set(modules)
    for node in _run(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        is_for_types = (
            isinstance(child, ast.If)
            and isinstance(child.test, ast.Name)
            and child.test.id == "TYPE_CHECKING"
        )
        if not is_for_types:
            yield from _run(child)


def upward(arrows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Arrows that lead to a room further up than their own."""
    floor = {room: number for number, room in enumerate(ROOMS)}
    return sorted((a, b) for a, b in arrows if floor.get(b, -1) < floor.get(a, len(ROOMS)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Show the rooms and the arrows between them.")
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, metavar="FOLDER")
    house = read_house(parser.parse_args().root)
    arrows = house.arrows()
    lines: Counter[str] = Counter()
    files: Counter[str] = Counter(room_of(module) for module in house.lines)
    for module, count in house.lines.items():
        lines[room_of(module)] += count
    order = {room: number for number, room in enumerate(ROOMS)}
    for room in sorted(lines, key=lambda name: (order.get(name, -1), name)):
        to = ", ".join(
            f"{other} {n}" for (start, other), n in sorted(arrows.items()) if start == room
        )
        print(f"{room:<18}{files[room]:>4} files{lines[room]:>7} lines  -> {to or 'nothing'}")
    print(
        f"{len(lines)} rooms, {sum(files.values())} files, {sum(lines.values())} lines, "
        f"{len(arrows)} arrows"
    )
    print("circles:", "; ".join(" <-> ".join(circle) for circle in house.circles()) or "none")
    print("upward arrows:", ", ".join(f"{a} -> {b}" for a, b in upward(arrows)) or "none")


if __name__ == "__main__":
    main()
