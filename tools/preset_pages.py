"""docs/presets.md's tables, and the names of image and repository in the documents."""

import re
from collections.abc import Iterable

from benchmarks.preset_costs import seconds_a_graph
from tools.documents import ROOT
from tools.presets import POOLS, PRESETS, REPOSITORY, Preset, image, in_minutes

PAGE = ROOT / "docs" / "presets.md"
NAMING = [ROOT / path for path in ("README.md", ".runpod/README.md", "docs/runpod.md")]


def write() -> None:
    """Write the tables into their page, and the names into all pages that have them."""
    PAGE.write_text(with_tables(PAGE.read_text()))
    for path in NAMING:
        path.write_text(with_names(path.read_text()))


def tables() -> dict[str, str]:
    """The page's tables by their marks."""
    return {"gpus": _gpus(), "starts": _starts(), "costs": _costs()}


def _gpus() -> str:
    heading = "preset | needs | `gpu.pools` | container disk | or network volume | cached model"
    rows = []
    for p in PRESETS:
        pools = ", ".join(f"`{pool}`" for pool in p.pools)
        disk = "-" if p.needs_volume else f"{p.disk_gb} GB"
        cells = (_link(p), f"{p.gpu_bytes / 1e9:.0f} GB", pools, disk, f"{p.volume_gb:,} GB")
        rows.append((*cells, f"`{p.cached_repository}`"))
    return _table(heading, rows)


def _starts() -> str:
    heading = "preset | bytes to fetch | at 1 Gbit/s | at 5 Gbit/s | `RUNPOD_INIT_TIMEOUT`"
    rows = []
    for p in PRESETS:
        starts = [in_minutes(p.first_start_s(gbit)) for gbit in (1, 5)]
        rows.append((p.slug, f"{p.fetched_bytes / 1e9:.1f} GB", *starts, str(p.init_timeout_s)))
    return _table(heading, rows)


def _costs() -> str:
    heading = "preset | pool | price a second | first start | a graph | 1,000 graphs"
    rows = []
    for p in PRESETS:
        for i, name in enumerate(p.pools):
            pool = POOLS[name]
            seconds = seconds_a_graph(p.entry, pool.card)
            prices = (p.first_start_s(1) * pool.price, 1000 * seconds * pool.price)
            first, graphs = (f"${price:,.2f}" for price in prices)
            cells = (f"`{name}` ({pool.card})", f"${pool.price:.5f}", first)
            rows.append(("" if i else p.slug, *cells, f"{seconds:.1f} s", graphs))
    return _table(heading, rows)


def _table(heading: str, rows: Iterable[Iterable[str]]) -> str:
    lines = [heading, " | ".join("---" for _ in heading.split("|")), *map(" | ".join, rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _link(preset: Preset) -> str:
    return f"[{preset.slug}](endpoints/{preset.slug}.json)"


def with_tables(page: str) -> str:
    """A page with the tables between its marks made anew."""
    for name, table in tables().items():
        marked = re.compile(rf"(<!-- {name} -->\n)(.*\n)?(<!-- /{name} -->)", re.S)
        page = marked.sub(rf"\1{table}\n\3", page)
    return page


def with_names(page: str) -> str:
    """A page with the names of the image and of the repository as they are now."""
    page = re.sub(r"ghcr\.io/[\w./-]+:[\w.-]*\w", image(), page)
    hosts = r"(api\.runpod\.io/badge|console\.runpod\.io/hub)"
    page = re.sub(rf"{hosts}/[\w-]+/[\w-]+", rf"\1/{REPOSITORY}", page)
    return re.sub(r"(github\.com)/[\w-]+/[\w-]+(#where)", rf"\1/{REPOSITORY}\2", page)
