"""Filling the attribution matrix: which rows, in which order, and where they are kept."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import torch

import errors
from attribution.device_errors import is_out_of_memory
from attribution.memory import Shape, rows_bytes, targets_at_once
from attribution.progress import Progress
from attribution.ranking import Ranking
from attribution.targets import Targets

logger = logging.getLogger(__name__)

_SHARE_OF_DEVICE = 0.6  # of its free memory that the rows may take; batches need the rest
_ROWS_AT_ONCE = 256


class LinearModel(Protocol):
    """What an engine's local replacement model tells of its targets.

    Active features are sorted by layer. A layer is whatever features read from and write to in one
    step, a sublayer where attention is replaced too. What a target reads is the engine's own: a
    tensor, or anything with a length and slices.
    """

    @property
    def shape(self) -> Shape: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def feature_layers(self) -> torch.Tensor:
        """(n_active,) on the CPU."""

    @property
    def feature_positions(self) -> torch.Tensor:
        """(n_active,) on the CPU."""

    @property
    def before_layer(self) -> torch.Tensor:
        """(n_layers + 1,) on the CPU: how many active features are below each layer."""

    def feature_reads(self, layers: torch.Tensor, features: torch.Tensor) -> Any: ...
    def logit_reads(self, vectors: torch.Tensor) -> Any: ...


# (local, layers (n,), positions (n,), reads, rows (n, n_sources)): writes the edges to the rows.
WriteRows = Callable[[Any, torch.Tensor, torch.Tensor, Any, torch.Tensor], None]


class Expansion:
    """Computes rows of the attribution matrix in batches that fit the device.

    `update_interval` batches of `batch_size` targets lie between two rankings. Where there is
    memory for it they are carried down at once, in larger products and fewer of them.
    """

    def __init__(
        self,
        local: LinearModel,
        write_rows: WriteRows,
        targets: Targets,
        batch_size: int,
        update_interval: int,
        progress: Progress,
    ) -> None:
        self._local, self._shape = local, local.shape
        self._write_rows = write_rows
        self._targets = targets
        self._batch_size = batch_size
        self._update_interval = update_interval
        self._at_once = batch_size
        self._progress = progress
        self._device = local.device
        self._layers, self._positions = local.feature_layers, local.feature_positions

    def expand(self, n_features: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The features (n_features,) that influence the logits most, sorted, and their graph.

        Its adjacency matrix (n_nodes, n_nodes) is on the CPU: features, errors, tokens, logits.
        """
        if n_features == self._shape.n_active:
            return torch.arange(n_features), self._all_features()
        return self._most_influential(n_features)

    def _all_features(self) -> torch.Tensor:
        """The adjacency matrix (n_nodes, n_nodes) with every active feature, on the CPU."""
        n_sources = self._shape.n_sources
        n_nodes = n_sources + len(self._targets)
        adjacency = _host_zeros(n_nodes, n_nodes)
        self._at_once = self._affordable_at_once(rows_on_host=True)
        self._target_rows(adjacency[n_sources:, :n_sources])
        for features in torch.arange(self._shape.n_active).split(self._layers.bincount().tolist()):
            if len(features):
                self._feature_rows(features, adjacency[features[0] : features[-1] + 1, :n_sources])
        return adjacency

    def _most_influential(self, n_features: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The `n_features` that influence the logits most, sorted, and their adjacency matrix."""
        n_logits, n_active = len(self._targets), self._shape.n_active
        rows = self._new_rows(n_logits + n_features)
        self._at_once = self._affordable_at_once(rows_on_host=not rows.is_cuda)
        self._target_rows(rows[:n_logits])
        ranking = Ranking(rows, self._targets.probabilities, n_active, self._shape.n_layers)
        before_layer = self._local.before_layer
        queue_length = self._update_interval * self._batch_size
        expanded = torch.zeros(0, dtype=torch.long)
        is_expanded = torch.zeros(n_active, dtype=torch.bool)
        while len(expanded) < n_features:
            influence = ranking.influence(expanded, before_layer[self._layers[expanded]])
            ranked = influence.argsort(descending=True, stable=True).cpu()
            left = ranked[~is_expanded[ranked]]
            queue = self._in_sweep_order(left[: min(queue_length, n_features - len(expanded))])
            start = n_logits + len(expanded)
            self._feature_rows(queue, rows[start : start + len(queue)])
            expanded = torch.cat([expanded, queue])
            is_expanded[queue] = True
        del ranking  # and the block that it keeps
        return is_expanded.nonzero().flatten(), self._adjacency(rows, expanded)

    def _new_rows(self, n: int) -> torch.Tensor:
        """Zeros (n, n_sources), on the device if they fit there with room to work, or the CPU."""
        device = self._device
        if device.type == "cuda":
            needed = rows_bytes(n, self._shape.n_sources)
            if needed > _SHARE_OF_DEVICE * _free_bytes(device):
                logger.info("keeping %.1f GB of attribution rows on the host", needed / 1e9)
                device = torch.device("cpu")
        if device.type == "cpu":
            return _host_zeros(n, self._shape.n_sources)
        return torch.zeros(n, self._shape.n_sources, device=device)

    def _affordable_at_once(self, *, rows_on_host: bool) -> int:
        return targets_at_once(
            self._shape,
            self._batch_size,
            self._update_interval,
            free_bytes=_free_bytes(self._device) if self._device.type == "cuda" else 0,
            rows_on_host=rows_on_host,
        )

    def _in_sweep_order(self, features: torch.Tensor) -> torch.Tensor:
        """Sort so that a batch shares late positions, and within it the top layers come first."""
        by_position = features[self._positions[features].argsort(descending=True)]
        return torch.cat(
            [
                batch[self._layers[batch].argsort(descending=True)]
                for batch in by_position.split(self._at_once)
            ]
        )

    def _target_rows(self, out: torch.Tensor) -> None:
        """Write the rows of the graph's targets, in their order, to `out`."""
        n_vectors, order = len(self._targets.vectors), self._targets.order
        self._logit_rows(out[:n_vectors])
        if order is not None:
            features = torch.tensor(self._targets.features)
            self._feature_rows(features, out[n_vectors:], are_nodes=False)
            out.copy_(out[torch.tensor(order, device=out.device)])

    def _logit_rows(self, out: torch.Tensor) -> None:
        reads = self._local.logit_reads(self._targets.vectors)
        layers = torch.full((len(reads),), self._shape.n_layers)
        positions = torch.full((len(reads),), self._shape.n_pos - 1)
        start = 0
        while start < len(reads):
            end = start + self._at_once
            self._progress.check()
            self._batch(layers[start:end], positions[start:end], reads[start:end], out[start:end])
            start = end

    def _feature_rows(
        self, features: torch.Tensor, out: torch.Tensor, *, are_nodes: bool = True
    ) -> None:
        """Write the rows of features, whose layers descend within a batch, to `out`.

        Progress counts those that become the graph's feature nodes.
        """
        start = 0
        while start < len(features):
            batch = features[start : start + self._at_once]
            self._progress.check()
            self._batch(
                self._layers[batch],
                self._positions[batch],
                self._local.feature_reads(self._layers[batch], batch.to(self._device)),
                out[start : start + len(batch)],
            )
            if are_nodes:
                self._progress.advance(len(batch))
            start += len(batch)

    def _batch(
        self,
        layers: torch.Tensor,
        positions: torch.Tensor,
        reads: Any,
        out: torch.Tensor,
    ) -> None:
        """Write the rows of a batch to `out`, in halves if memory runs out."""
        rows = out
        try:
            if out.device != self._device:
                rows = torch.zeros(out.shape, device=self._device)
            self._write_rows(self._local, layers, positions, reads, rows)
            if rows is not out:
                self._copy_reached(layers, rows, out)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(reads) == 1:
                raise errors.OutOfMemory(
                    "a single attribution target does not fit the device: lower "
                    "max_feature_nodes or send a shorter prompt"
                ) from error
        # Out of the handler, where the failed attempt's tensors are no longer referred to.
        half = len(reads) // 2
        self._at_once = min(self._at_once, max(1, half))
        logger.warning("out of memory: attributing in batches of %d", self._at_once)
        del rows
        if out.device == self._device:
            out.zero_()
        for part in (slice(0, half), slice(half, None)):
            self._batch(layers[part], positions[part], reads[part], out[part])

    def _copy_reached(self, layers: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Copy rows to the host but for features above their targets, so that these take no memory.

        Args:
            layers: (n,) of the targets, on the CPU, descending.
        """
        n_active, before_layer = self._shape.n_active, self._local.before_layer
        out[:, n_active:] = rows[:, n_active:]
        start = 0
        for layer, n in zip(*layers.unique_consecutive(return_counts=True), strict=True):
            at, below = slice(start, start + int(n)), int(before_layer[int(layer)])
            out[at, :below] = rows[at, :below]
            start += int(n)

    def _adjacency(self, rows: torch.Tensor, expanded: torch.Tensor) -> torch.Tensor:
        """Put rows, logits first and then features as expanded, in the graph's order."""
        n_logits, n_active = len(self._targets), self._shape.n_active
        selected, order = expanded.sort()
        # A row is zero from its own layer's features on: how many of the selected come before.
        layers = self._layers[selected]
        before = torch.searchsorted(layers, layers)
        n_selected, n_columns = len(selected), len(selected) + rows.shape[1] - n_active
        columns, order = selected.to(rows.device), order.to(rows.device) + n_logits
        adjacency = _host_zeros(n_columns + n_logits, n_columns + n_logits)
        adjacency[-n_logits:, :n_selected] = rows[:n_logits, columns]
        adjacency[-n_logits:, n_selected:n_columns] = rows[:n_logits, n_active:]
        for start in range(0, n_selected, _ROWS_AT_ONCE):
            at = slice(start, min(start + _ROWS_AT_ONCE, n_selected))
            below = int(before[at][-1])
            adjacency[at, :below] = rows[order[at, None], columns[:below]]
            adjacency[at, n_selected:n_columns] = rows[order[at], n_active:]
        return adjacency


def _free_bytes(device: torch.device) -> int:
    """What a CUDA device has left for this process, its allocator's own reserve included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _host_zeros(n_rows: int, n_columns: int) -> torch.Tensor:
    """Float32 zeros that take memory only where written, as more than half of a row never is.

    Its pages are small: something would be written to each of the 2 MB pages that numpy asks for.
    """
    n = n_rows * n_columns
    pages = mmap.mmap(-1, max(1, 4 * n), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # of a kernel that has none
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.from_numpy(np.frombuffer(pages, np.float32, n).reshape(n_rows, n_columns))
