"""Reading single features of a replacement model, and setting them.

A transcoder feature reads the model at its layer's feature input and writes, scaled by its
activation, to the feature output of its layer (per-layer transcoders) or of its layer and every
later one (cross-layer transcoders). A complete replacement model has such features in each
sublayer; those of attention read all earlier positions too, and write at their own. Setting a
feature to a value adds (value - activation) times what it writes. Everything goes through hooks of
a forward pass.

Activations are computed as attribution does it, those of circuit-tracer's transcoders in their
dtype: the value that a graph gives a feature is the value found here. From there on numbers are
float32: values, differences, and the sum of all that is written at a position. The sum is added to
the feature output in float32, and only that is rounded, to the dtype in which the model hands the
feature output over. No step adds in an order that a CUDA device is free to choose.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from errors import NotFinite
from steering.engine import HookPoint, Hooks, Passes
from steering.passes import passes_of
from steering.readers import Feature, FeatureReader, longest_written, without_too_large


def feature_activations(
    model: Any,
    token_ids: Sequence[int],
    features: Sequence[Feature],
    check: Callable[[], None] = lambda: None,
) -> list[float]:
    """The activation of each feature in the model's own pass over the prompt.

    As in circuit-tracer, features at the positions it leaves out (BOS, Gemma 3's prefix) have
    activation 0.

    Args:
        check: called before the weights of each layer's features are read; raises to stop.

    Raises:
        NotFinite: an activation is not a finite number.
    """
    if not features:
        return []
    passes = passes_of(model)
    silent = passes.silent_positions(len(token_ids))
    by_layer = _by_layer(features)
    with torch.inference_mode():
        readers: dict[HookPoint, FeatureReader] = {}
        for layer, mine in by_layer.items():
            check()
            readers[layer, "feature input"] = passes.reader(mine, silent)
        read = passes.record(token_ids, readers)
    activations: dict[Feature, float] = {}
    for (layer, _), values in read.items():
        activations.update(zip(by_layer[layer], values[0].tolist(), strict=True))
    if not all(map(math.isfinite, activations.values())):
        raise NotFinite.of("the features' activations on this prompt", model.cfg.dtype)
    return [activations[feature] for feature in features]


@dataclass(frozen=True)
class InterventionHooks:
    """Hooks under which a forward pass has features at the values given, effects included.

    `before` change nothing; a pass over the text that comes before has to run under them.
    """

    during: Hooks
    before: Mapping[HookPoint, Callable[[Tensor], None]]

    def and_before(self, later: "InterventionHooks") -> Hooks:
        """The hooks of a pass that is steered by these, and is followed by one under `later`."""
        both = {**self.during, **later.before}
        for point in self.during.keys() & later.before.keys():
            both[point] = partial(_in_turn, later.before[point], self.during[point])
        return both


def _in_turn(
    first: Callable[[Tensor], None], second: Callable[[Tensor], Tensor | None], acts: Tensor
) -> Tensor | None:
    first(acts)
    return second(acts)


def intervention_hooks(
    passes: Passes,
    values: Mapping[Feature, float],
    check: Callable[[], None],
    silent: Collection[int] = (),
) -> InterventionHooks:
    """The hooks that set features, in passes that they are given to.

    They act on the last row of a batch. The activation that a value replaces is the one in the
    steered pass itself, so that layers see what was set below them. The rows of the transcoders
    are read here, once for all passes.

    Args:
        values: activations; positions count the pass's own tokens.
        check: called before each layer's rows are read; raises to stop.
        silent: positions whose features count as inactive before they are set.
    """
    pending: dict[int, Tensor] = {}  # layer -> what to add there, (n_positions, d_model) float32
    hooks: dict[HookPoint, Callable[[Tensor], Tensor | None]] = {}
    before: dict[HookPoint, Callable[[Tensor], None]] = {}
    for layer, features in _by_layer(values).items():
        check()
        reader = passes.reader(features, silent)
        targets = torch.tensor(
            [values[feature] for feature in features],
            dtype=torch.float32,
            device=passes.model.cfg.device,
        )
        decoders = reader.decoders()[:, reader.at.column]
        targets = without_too_large(targets, longest_written(decoders))
        read = partial(_read_deltas, layer, reader, targets, decoders, pending)
        hooks[layer, "feature input"] = read
        if reader.reads_earlier:
            before[layer, "feature input"] = reader.begin
        for written in range(layer, layer + len(decoders)):
            hooks[written, "feature output"] = partial(_write_deltas, written, pending)
    return InterventionHooks(hooks, before)


def _by_layer(features: Iterable[Feature]) -> dict[int, list[Feature]]:
    by_layer = defaultdict(list)
    for feature in dict.fromkeys(features):
        by_layer[feature[0]].append(feature)
    return by_layer


def _read_deltas(
    layer: int,
    reader: FeatureReader,
    targets: Tensor,  # (n_features,)
    decoders: Tensor,  # (n_layers_written, n_features, d_model)
    pending: dict[int, Tensor],
    acts: Tensor,  # (n_rows, n_positions, d_model)
) -> None:
    deltas = targets - reader(acts[-1:])[0]
    positions = torch.arange(acts.shape[1], device=acts.device)
    # (n_positions, n_features), so that a matrix product sums what is written at each position.
    deltas_at = torch.where(positions[:, None] == reader.at.of_features, deltas, 0.0)
    for written, vectors in enumerate(decoders, start=layer):
        added = deltas_at @ vectors.float()
        pending[written] = pending[written] + added if written in pending else added


def _write_deltas(layer: int, pending: dict[int, Tensor], acts: Tensor) -> Tensor:
    steered = (acts[-1:] + pending.pop(layer)).to(acts.dtype)
    return torch.cat([acts[:-1], steered])
