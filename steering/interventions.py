"""What features set to chosen activations change after a prompt and inside, without generating.

The numbers are those of circuit-tracer's `feature_intervention`. All experiments go through the
model as rows of one batch, whose first row is the prompt without any: what an experiment keeps
frozen is what that row has at the same place, in the same pass.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attribution.device_errors import is_out_of_memory
from errors import InvalidInput, NotFinite, OutOfMemory
from steering.engine import HookPoint, Passes
from steering.passes import passes_of
from steering.readers import Feature, FeatureReader, longest_written, without_too_large

logger = logging.getLogger(__name__)

# What an experiment sets features to: (layer, position, index) to activation.
Experiment = Mapping[Feature, float]


@dataclass(frozen=True)
class Frozen:
    """What stays as it is on the prompt without experiments.

    In `layers` the MLPs stay as they are, and only what is set is added to them; the deltas then
    start from the prompt's own activations, and features write to these layers alone. Where there
    are any, attention patterns are frozen too, and where they are all the layers, so are norms.

    In a complete replacement model a layer's attention stays as its MLP does. `attention` is of the
    language model's patterns, as when it is steered; where there are `layers`, the patterns of
    Lorsas are frozen as well.
    """

    layers: range = range(0)
    attention: bool = True


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The prompt without experiments, then each of them: n_rows of each.

    An activation is the one in force: what a feature is set to, or else what it reads.
    """

    logits: Tensor  # (n_rows, d_vocab) after the last token, on the model's device
    activations: Tensor  # (n_rows, n_features) float32, on the CPU


def intervene(
    model: Any,
    token_ids: Sequence[int],
    features: Sequence[Feature],
    experiments: Sequence[Experiment],
    frozen: Frozen,
    *,
    check: Callable[[], None] = lambda: None,
    on_done: Callable[[int, int], None] = lambda *_: None,
) -> Outcomes:
    """Run a prompt under each of the experiments. The model is left as it came.

    Args:
        features: distinct, with all that an experiment sets, within the bounds of the model.
        check: called at each layer that has features, where their weights are read and in the
            passes; raises to stop.
        on_done: called with (experiments done, experiments in all) after each batch.

    Raises:
        InvalidInput: the model can't hold what `frozen` names.
        OutOfMemory: not even one experiment fits.
        NotFinite: the numbers of the prompt, or those of an experiment, are not all finite.
    """
    check_frozen(model, frozen)
    passes, total = passes_of(model), len(experiments)
    with torch.inference_mode():
        layers = _layers(passes, token_ids, features, check)
        logits, activations, done, at_once = [], [], 0, total
        while done < total:
            batch = experiments[done : done + at_once]
            run = _attempt(_Batch(passes, layers, batch, frozen, check), token_ids)
            if run is None:
                if len(batch) == 1:
                    raise OutOfMemory(
                        "the device has no room for a single experiment; name fewer features, or "
                        "shorten the prompt"
                    )
                at_once = max(1, len(batch) // 2)
                logger.warning("out of memory: running %d experiments at once", at_once)
                continue
            new_logits, new_activations = run
            _check_finite(model, new_logits, new_activations, batch, done)
            # Each batch has the prompt without experiments, which is kept once.
            logits.append(new_logits[min(done, 1) :])
            activations.append(new_activations[min(done, 1) :])
            done += len(batch)
            on_done(done, total)
    return Outcomes(torch.cat(logits), torch.cat(activations))


def check_frozen(model: Any, frozen: Frozen) -> None:
    """Raise InvalidInput, naming the bound, for layers that can't be held on this model."""
    n_layers, layers = model.cfg.n_layers, frozen.layers
    if layers and layers[-1] >= n_layers:
        raise InvalidInput(
            f"constrained_layers ends at {layers[-1]}, the model has {n_layers} layers "
            f"(0 to {n_layers - 1})"
        )


def _attempt(batch: "_Batch", token_ids: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """A batch's logits and activations; None where memory runs out, with nothing kept of it."""
    try:
        return batch.run(token_ids)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None


def _check_finite(
    model: Any, logits: Tensor, activations: Tensor, batch: Sequence[Experiment], done: int
) -> None:
    """Raise NotFinite for the prompt or the first experiment that has other numbers."""
    finite = logits.isfinite().all(1).cpu() & activations.isfinite().all(1)
    if finite.all():
        return
    if not finite[0]:
        raise NotFinite.of("the model's numbers on this prompt", model.cfg.dtype)
    n = int(finite.int().argmin()) - 1
    if not any(batch[n].values()):  # an ablation has nothing that could be smaller
        raise NotFinite.of(f"the model's numbers under experiments[{done + n}]", model.cfg.dtype)
    name = str(model.cfg.dtype).removeprefix("torch.")
    raise NotFinite(
        f"experiments[{done + n}]: the activations that it sets drive "
        f"the model's numbers out of the range of {name}; use smaller scales or values"
    )


def _layers(
    passes: Passes,
    token_ids: Sequence[int],
    features: Sequence[Feature],
    check: Callable[[], None],
) -> dict[int, "_LayerFeatures"]:
    by_layer: dict[int, list[int]] = defaultdict(list)
    for column, (layer, _, _) in enumerate(features):
        by_layer[layer].append(column)
    silent = passes.silent_positions(len(token_ids))
    layers = {}
    for layer, columns in sorted(by_layer.items()):
        check()
        mine = [features[n] for n in columns]
        layers[layer] = _LayerFeatures(layer, columns, mine, passes.reader(mine, silent))
    return layers


class _LayerFeatures:
    """Features of one layer, read and written in every row. The module's rows are read once."""

    def __init__(
        self,
        layer: int,
        columns: Sequence[int],
        features: Sequence[Feature],
        reader: FeatureReader,
    ) -> None:
        self.read, self._at = reader, reader.at
        self._decoders = reader.decoders()
        self.lengths = longest_written(self._decoders)[self._at.column]
        self.layer, self.features, self.columns = layer, features, columns
        self.written = range(layer, layer + len(self._decoders))

    def by_place(self, deltas: Tensor) -> Tensor:
        """Deltas (n_rows, n_features) by distinct position and index, 0 where no feature is."""
        at = self._at
        spread = deltas.new_zeros(len(deltas), len(at.positions), len(at.indices))
        spread[:, at.row, at.column] = deltas
        return spread

    def add_writes_(self, total: Tensor, spread: Tensor, layer: int) -> None:
        """Add what deltas `by_place` write at a layer's output to (n_rows, n_pos, d) float32."""
        vectors = self._decoders[layer - self.layer].float()
        # All positions in one product: on a GPU a launch for each would take longer.
        total[:, self._at.positions] += spread @ vectors


class _Batch:
    """One pass over the prompt: a row without experiments, and a row for each of some."""

    def __init__(
        self,
        passes: Passes,
        layers: Mapping[int, _LayerFeatures],
        experiments: Sequence[Experiment],
        frozen: Frozen,
        check: Callable[[], None],
    ) -> None:
        self._passes, self._layers, self._frozen, self._check = passes, layers, frozen, check
        self._experiments = experiments
        self._held = passes.layers_of(frozen.layers)
        self._freezes_norms = len(frozen.layers) == passes.model.cfg.n_layers
        self._acts_into: dict[int, Tensor] = {}  # layer -> activations of its features
        self._deltas: dict[int, Tensor] = {}  # layer -> those of its features, by place
        self._writers: dict[int, list[_LayerFeatures]] = defaultdict(list)  # by layer written to
        self._through_skip: dict[int, Tensor] = {}  # layer -> what changes there behind a freeze

    def run(self, token_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits (n_rows, d_vocab), and activations (n_rows, n_features) on the CPU."""
        n_rows, frozen = 1 + len(self._experiments), self._frozen
        logits = self._passes.last_logits(
            self._passes.tokens([token_ids] * n_rows),
            self._hooks(),
            freeze_attention=frozen.attention or bool(frozen.layers),
            freeze_norms=self._freezes_norms,
        )
        n_features = sum(len(layer.columns) for layer in self._layers.values())
        activations = torch.zeros(n_rows, n_features)
        for number, seen in self._acts_into.items():
            activations[:, self._layers[number].columns] = seen.cpu()
        return logits, activations

    def _hooks(self) -> dict[HookPoint, Callable[[Tensor], Tensor | None]]:
        hooks: dict[HookPoint, Callable[[Tensor], Tensor | None]] = {}
        for number, layer in self._layers.items():
            hooks[number, "feature input"] = partial(self._read, number)
            for written in self._written(layer):
                self._writers[written].append(layer)
        for number in self._held:
            hooks[number, "feature input"] = partial(self._read, number)
        for number in {*self._held, *self._writers}:
            hooks[number, "feature output"] = partial(self._write, number)
        return hooks

    def _written(self, layer: _LayerFeatures) -> list[int]:
        """The layers to which a layer's features write here."""
        held = self._held
        return [number for number in layer.written if not held or number in held]

    def _read(self, number: int, acts: Tensor) -> None:
        self._check()
        if number in self._held:
            skip = self._passes.skip(number)
            if skip is not None:
                changed = (acts - acts[:1]).float()
                self._through_skip[number] = changed @ skip.float().T
        layer = self._layers.get(number)
        if layer is None:
            return
        read = layer.read(acts, first_patterns=bool(self._held))
        targets, is_set = self._targets(layer, read)
        own = read[:1] if self._held else read
        writes = bool(self._written(layer))
        if not writes:  # as if nothing were set
            is_set = torch.zeros_like(is_set)
        if not self._freezes_norms:
            targets = without_too_large(targets, layer.lengths)
        deltas = torch.where(is_set, targets - own, 0.0)
        self._acts_into[number] = torch.where(is_set, targets, read)
        if writes:
            self._deltas[number] = layer.by_place(deltas)

    def _targets(self, layer: _LayerFeatures, read: Tensor) -> tuple[Tensor, Tensor]:
        """What each row sets the features to, and whether it does, both (n_rows, n_features)."""
        rows = [[math.nan] * len(layer.features)]
        for experiment in self._experiments:
            rows.append([experiment.get(feature, math.nan) for feature in layer.features])
        values = torch.tensor(rows, dtype=torch.float32, device=read.device)
        return values, ~values.isnan()

    def _write(self, number: int, acts: Tensor) -> Tensor:
        added = acts
        if number in self._held:
            added = acts[:1].expand_as(acts)
        if number in self._through_skip:
            added = added + self._through_skip.pop(number)
        if number in self._writers:
            total = torch.zeros_like(acts, dtype=torch.float32)
            for layer in self._writers[number]:
                layer.add_writes_(total, self._deltas[layer.layer], number)
            added = added + total
        return added.to(acts.dtype)
