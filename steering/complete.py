"""Forward passes of a complete replacement model, and reading its features.

A layer of steering is a sublayer here: `2 l` the attention of layer l, `2 l + 1` its MLP.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from attribution.complete.modules import CompleteModel, Lorsa, Transcoder
from steering.engine import HookPoint
from steering.readers import Feature, FeatureReader, Places
from steering.transformerlens import TransformerLensPasses

_HOOKS = {
    "feature input": ("ln1.hook_normalized", "ln2.hook_normalized"),
    "feature output": ("hook_attn_out", "hook_mlp_out"),
}


class CompletePasses(TransformerLensPasses):
    """Passes of the language model, with features in its attention and its MLPs."""

    def __init__(self, complete: CompleteModel) -> None:
        self.model, self._complete = complete.language_model, complete

    def reader(self, features: Sequence[Feature], silent: Collection[int]) -> FeatureReader:  # noqa: ARG002 - no position is
        module = self._complete.module(features[0][0])
        places = Places(features, self.model.cfg.device)
        if isinstance(module, Lorsa):
            return LorsaReader(module, places)
        return TranscoderReader(module, places)

    def silent_positions(self, n_tokens: int) -> range:  # noqa: ARG002 - however many there are
        return range(0)

    def _block(self, layer: int) -> int:
        return layer // 2

    def _named(
        self, point: HookPoint, function: Callable[[Tensor], Tensor | None]
    ) -> tuple[str, Callable[[Tensor], Tensor | None]]:
        sublayer, side = point
        if side == "feature input":
            # TransformerLens normalises the input anew for queries, for keys and for values.
            function = _at_first_call(function)
        return f"blocks.{sublayer // 2}.{_HOOKS[side][sublayer % 2]}", function


def _at_first_call(
    function: Callable[[Tensor], Tensor | None],
) -> Callable[[Tensor], Tensor | None]:
    calls = iter([function])
    return lambda acts: next(calls, lambda _: None)(acts)


class TranscoderReader(FeatureReader):
    """Features of an MLP."""

    def __init__(self, transcoder: Transcoder, places: Places) -> None:
        self._at, self._decoder = places, transcoder.decoder
        # Under TopK features compete: all are computed.
        competes = transcoder.activation.competes
        self._transcoder = transcoder if competes else transcoder.part(places.indices)
        self._column = places.indices[places.column] if competes else places.column
        self.positions = places.positions[places.row]

    def __call__(self, acts: Tensor) -> Tensor:
        activations = self._transcoder.encode(acts[-1, self._at.positions].float())
        return activations[self._at.row, self._column]

    def decoders(self) -> Tensor:
        return self._decoder.rows(self._at.indices)[self._at.column][None]


class LorsaReader(FeatureReader):
    """Features of an attention: of each head a pattern, of each feature a value a position."""

    reads_earlier = True

    def __init__(self, lorsa: Lorsa, places: Places) -> None:
        self._lorsa, self._at = lorsa, places
        self._indices = places.indices[places.column]
        self._earlier: tuple[Tensor, Tensor] | None = None  # keys and values
        self.positions = places.positions[places.row]

    def begin(self, acts: Tensor) -> None:
        self._earlier = self._keys_and_values(acts[-1].float(), 0)

    def __call__(self, acts: Tensor) -> Tensor:
        x, at, first = acts[-1].float(), self._at, 0
        if self._earlier is None:
            keys, values = self._keys_and_values(x, 0)
        else:
            first = len(self._earlier[1])
            keys, values = (
                torch.cat(both, dim=-2)
                for both in zip(self._earlier, self._keys_and_values(x, first), strict=True)
            )
            self._earlier = keys, values
        pattern = self._lorsa.pattern(x[at.positions], first + at.positions, keys)
        if self._lorsa.activation.competes:
            return self._lorsa.activations(pattern, values)[at.row, self._indices]
        # A row of the pattern for each feature, (n_features, n_seen).
        attended = pattern[self._indices // self._lorsa.n_grouped, at.row]
        before = (attended * values.T[at.column]).sum(1)
        activation = self._lorsa.activation.part(self._indices)
        return activation(before[None], self._lorsa.decoder.part(self._indices))[0]

    def decoders(self) -> Tensor:
        return self._lorsa.decoder.rows(self._at.indices)[self._at.column][None]

    def _keys_and_values(self, x: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Those of positions from `first` on: (n_qk, n, d_qk), and (n, n_indices) or (n, d_sae)."""
        keys, _ = self._lorsa.keys(x, slice(first, first + len(x)))
        competes = self._lorsa.activation.competes
        return keys, self._lorsa.values(x, slice(None) if competes else self._at.indices)
