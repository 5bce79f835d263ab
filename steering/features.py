"""Reading single features of a replacement model, and setting them.

A transcoder feature reads the model at its layer's feature input and writes, scaled by its
activation, to the feature output of its layer (per-layer transcoders) or of its layer and every
later one (cross-layer transcoders). Setting it to a value adds (value - activation) times what it
writes. Everything goes through hooks of a forward pass.

Activations are computed in the transcoder's dtype, as circuit-tracer does it and attribution with
it: the value that a graph gives a feature is the value found here. From there on numbers are
float32: values, differences, and the sum of all that is written at a position. The sum is added to
the feature output in float32, and only that is rounded, to the dtype in which the model hands the
feature output over. No step adds in an order that a CUDA device is free to choose.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attribution.transcoder_layer import TranscoderLayer
from errors import NotFinite
from steering.engine import HookPoint, Hooks, Passes
from steering.passes import passes_of

Feature = tuple[int, int, int]  # layer, position, index


def feature_activations(
    model: Any, token_ids: Sequence[int], features: Sequence[Feature]
) -> list[float]:
    """The activation of each (layer, position, index) in the model's own pass over the prompt.

    As in circuit-tracer, features at the positions it leaves out (BOS, Gemma 3's prefix) have
    activation 0.

    Raises:
        NotFinite: an activation is not a finite number.
    """
    if not features:
        return []
    passes, silent = passes_of(model), silent_positions(model, len(token_ids))
    by_layer = _by_layer(features)
    with torch.inference_mode():
        readers: dict[HookPoint, FeatureReader] = {
            (layer, "feature input"): FeatureReader(passes, mine, silent)
            for layer, mine in by_layer.items()
        }
        read = passes.record(token_ids, readers)
    activations: dict[Feature, float] = {}
    for (layer, _), values in read.items():
        activations.update(zip(by_layer[layer], values.tolist(), strict=True))
    if not all(map(math.isfinite, activations.values())):
        raise NotFinite.of("the features' activations on this prompt", model.cfg.dtype)
    return [activations[feature] for feature in features]


def silent_positions(model: Any, n_tokens: int) -> range:
    """Prompt positions at which circuit-tracer takes every feature for inactive."""
    return range(n_tokens)[model.zero_positions]


def intervention_hooks(
    passes: Passes, values: Mapping[Feature, float], silent: Collection[int] = ()
) -> Hooks:
    """Hooks under which a forward pass has features at the values given, effects included.

    They act on the last row of a batch. The activation that a value replaces is the one in the
    steered pass itself, so that layers see what was set below them. The rows of the transcoders
    are read here, once for all passes.

    Args:
        values: (layer, position, index) to activation; positions count the pass's own tokens.
        silent: positions whose features count as inactive before they are set.
    """
    pending: dict[int, Tensor] = {}  # layer -> what to add there, (n_positions, d_model) float32
    hooks: dict[HookPoint, Callable[[Tensor], Tensor | None]] = {}
    for layer, features in _by_layer(values).items():
        reader = FeatureReader(passes, features, silent)
        targets = torch.tensor(
            [values[feature] for feature in features],
            dtype=torch.float32,
            device=passes.model.cfg.device,
        )
        decoders = reader.decoders()
        read = partial(_read_deltas, layer, reader, targets, decoders, pending)
        hooks[layer, "feature input"] = read
        for written in range(layer, layer + len(decoders)):
            hooks[written, "feature output"] = partial(_write_deltas, written, pending)
    return hooks


def _by_layer(features: Iterable[Feature]) -> dict[int, list[Feature]]:
    by_layer = defaultdict(list)
    for feature in dict.fromkeys(features):
        by_layer[feature[0]].append(feature)
    return by_layer


def _read_deltas(
    layer: int,
    reader: "FeatureReader",
    targets: Tensor,  # (n_features,)
    decoders: Tensor,  # (n_layers_written, n_features, d_model)
    pending: dict[int, Tensor],
    acts: Tensor,  # (n_rows, n_positions, d_model)
) -> None:
    deltas = targets - reader(acts)
    positions = torch.arange(acts.shape[1], device=acts.device)
    # (n_positions, n_features), so that a matrix product sums what is written at each position.
    deltas_at = torch.where(positions[:, None] == reader.positions, deltas, 0.0)
    for written, vectors in enumerate(decoders, start=layer):
        added = deltas_at @ vectors.float()
        pending[written] = pending[written] + added if written in pending else added


def _write_deltas(layer: int, pending: dict[int, Tensor], acts: Tensor) -> Tensor:
    steered = (acts[-1:] + pending.pop(layer)).to(acts.dtype)
    return torch.cat([acts[:-1], steered])


class FeatureReader:
    """The activations of distinct features of one layer; of the transcoder no others are computed.

    Called with the layer's feature input, (n_rows, n_positions, d_model), it returns the last row's
    activations, (n_features,) float32. `positions` are the features' positions, (n_features,).
    """

    def __init__(
        self, passes: Passes, features: Sequence[Feature], silent: Collection[int]
    ) -> None:
        layers, positions, indices = zip(*features, strict=True)
        device = passes.model.cfg.device
        self._layer = TranscoderLayer(passes.transcoders, layers[0])
        self._positions, self._row = _distinct(positions, device)
        self._indices, self._column = _distinct(indices, device)
        self._silent = torch.tensor([position in silent for position in positions], device=device)
        self._encode = self._layer.encoder(self._indices)
        self.positions = self._positions[self._row]

    def __call__(self, acts: Tensor) -> Tensor:
        activations = self._encode(acts[-1, self._positions])  # at each position, of each index
        return activations[self._row, self._column].float().masked_fill(self._silent, 0)

    def decoders(self) -> Tensor:
        """What each feature writes, (n_layers_written, n_features, d_model)."""
        return self._layer.decoders(self._indices)[:, self._column]


def _distinct(values: Sequence[int], device: Any) -> tuple[Tensor, Tensor]:
    """The distinct values, and for each value which of them it is."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    which = [numbers[value] for value in values]
    return torch.tensor(list(numbers), device=device), torch.tensor(which, device=device)
