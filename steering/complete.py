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

    def layers_of(self, layers: range) -> range:
        return range(2 * layers.start, 2 * layers.stop)

    def skip(self, layer: int) -> None:  # noqa: ARG002 - no module has a skip connection
        return None

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
        self.at, self._decoder = places, transcoder.decoder
        # Under TopK features compete: all are computed.
        competes = transcoder.activation.competes
        self._transcoder = transcoder if competes else transcoder.part(places.indices)
        self._column = places.indices[places.column] if competes else places.column

    def __call__(self, acts: Tensor, *, first_patterns: bool = False) -> Tensor:  # noqa: ARG002 - of attention it has none
        activations = self._transcoder.encode(acts[:, self.at.positions].float())
        return activations[:, self.at.row, self._column]

    def decoders(self) -> Tensor:
        return self._decoder.rows(self.at.indices)[None]


class LorsaReader(FeatureReader):
    """Features of an attention: of each head a pattern, of each feature a value a position."""

    reads_earlier = True

    def __init__(self, lorsa: Lorsa, places: Places) -> None:
        self._lorsa, self.at = lorsa, places
        self._indices = places.indices[places.column]
        self._earlier: tuple[Tensor, Tensor] | None = None  # keys and values, of one row

    def begin(self, acts: Tensor) -> None:
        self._earlier = self._keys_and_values(acts[-1:].float(), 0)

    def __call__(self, acts: Tensor, *, first_patterns: bool = False) -> Tensor:
        x, at, first = acts.float(), self.at, 0
        if self._earlier is None:
            keys, values = self._keys_and_values(x, 0)
        else:
            first = self._earlier[1].shape[-2]
            keys, values = (
                torch.cat(both, dim=-2)
                for both in zip(self._earlier, self._keys_and_values(x, first), strict=True)
            )
            self._earlier = keys, values
        # (n_rows, n_qk, n_positions, n_seen)
        pattern = self._lorsa.pattern(x[:, at.positions], first + at.positions, keys)
        if first_patterns:
            pattern = pattern[:1].expand_as(pattern)
        if self._lorsa.activation.competes:
            return self._lorsa.activations(pattern, values)[:, at.row, self._indices]
        # A row of the pattern for each feature, (n_rows, n_features, n_seen).
        attended = pattern[:, self._indices // self._lorsa.n_grouped, at.row]
        before = (attended * values.transpose(1, 2)[:, at.column]).sum(-1)
        activation = self._lorsa.activation.part(self._indices)
        return activation(before, self._lorsa.decoder.part(self._indices))

    def decoders(self) -> Tensor:
        return self._lorsa.decoder.rows(self.at.indices)[None]

    def _keys_and_values(self, x: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Those of each row's positions from `first` on.

        Returns:
            Keys (n_rows, n_qk, n, d_qk), values (n_rows, n, n_indices) or (n_rows, n, d_sae).
        """
        keys, _ = self._lorsa.keys(x, slice(first, first + x.shape[1]))
        competes = self._lorsa.activation.competes
        return keys, self._lorsa.values(x, slice(None) if competes else self.at.indices)
