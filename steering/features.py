"""Reading single features of a replacement model, and setting them.

A transcoder feature reads the model at its layer's feature input and writes, scaled by its
activation, to the feature output of its layer (per-layer transcoders) or of its layer and every
later one (cross-layer transcoders). Setting it to a value adds (value - activation) times what it
writes. Everything goes through hooks of a forward pass.

Activations are computed in the transcoder's dtype, as circuit-tracer does it and attribution with
it: the value that a graph shows for a feature is the value found here. From there on numbers are
float32: values, differences, and the sum of all that is written at a position. The sum is added to
the feature output in float32, and only that is rounded, to the dtype in which the model hands the
feature output over. No step adds in an order that a CUDA device is free to choose.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from safetensors import safe_open
from torch import Tensor, nn

from errors import NotFinite
from steering.engine import Hook, Passes
from steering.passes import passes_of

Site = tuple[int, int]  # position, feature index


def feature_activations(
    model: Any, token_ids: Sequence[int], features: Sequence[tuple[int, int, int]]
) -> list[float]:
    """The activation of each (layer, position, index) in the model's own pass over the prompt.

    As in circuit-tracer, features at the positions it leaves out (BOS, Gemma 3's prefix) have
    activation 0.

    Raises:
        NotFinite: an activation is not a finite number.
    """
    if not features:
        return []
    sites: dict[int, list[Site]] = defaultdict(list)
    for layer, position, index in dict.fromkeys(features):
        sites[layer].append((position, index))
    passes, silent = passes_of(model), silent_positions(model, len(token_ids))
    activations: dict[tuple[int, int, int], float] = {}

    def read(acts: Tensor, layer: int, reader: FeatureReader) -> None:
        for (position, index), value in zip(sites[layer], reader(acts).tolist(), strict=True):
            activations[layer, position, index] = value

    with torch.inference_mode():
        hooks = [
            Hook(
                layer,
                "feature input",
                partial(read, layer=layer, reader=FeatureReader(passes, layer, wanted, silent)),
            )
            for layer, wanted in sites.items()
        ]
        passes.read(torch.tensor([list(token_ids)], device=model.cfg.device), hooks)
    if not all(map(math.isfinite, activations.values())):
        raise NotFinite.of("the features' activations on this prompt", model.cfg.dtype)
    return [activations[feature] for feature in features]


def silent_positions(model: Any, n_tokens: int) -> range:
    """Prompt positions at which circuit-tracer takes every feature for inactive."""
    return range(n_tokens)[model.zero_positions]


def intervention_hooks(
    passes: Passes, values: Mapping[tuple[int, int, int], float], silent: Collection[int] = ()
) -> list[Hook]:
    """Hooks under which a forward pass has features at the values given, effects included.

    They act on the last row of a batch. The activation that a value replaces is the one in the
    steered pass itself, so that layers see what was set below them. The rows of the dictionaries
    are read here, once for all passes.

    Args:
        values: (layer, position, index) to activation; positions count the pass's own tokens.
        silent: positions whose features count as inactive before they are set.
    """
    by_layer: dict[int, dict[Site, float]] = defaultdict(dict)
    for (layer, position, index), value in values.items():
        by_layer[layer][position, index] = value
    # Layer to what this pass adds there, (n_positions, d_model) float32.
    pending: dict[int, Tensor] = {}
    hooks: list[Hook] = []
    written: set[int] = set()
    for layer, changes in by_layer.items():
        reader = FeatureReader(passes, layer, list(changes), silent)
        targets = torch.tensor(
            list(changes.values()), dtype=torch.float32, device=passes.model.cfg.device
        )
        outputs = reader.decoder_rows()
        read = partial(
            _read_deltas,
            layer=layer,
            reader=reader,
            targets=targets,
            outputs=outputs,
            pending=pending,
        )
        hooks.append(Hook(layer, "feature input", read))
        written.update(range(layer, layer + outputs.shape[0]))
    for layer in sorted(written):
        write = partial(_write_deltas, layer=layer, pending=pending)
        hooks.append(Hook(layer, "feature output", write))
    return hooks


def _read_deltas(
    acts: Tensor,  # (n_rows, n_positions, d_model)
    layer: int,
    reader: "FeatureReader",
    targets: Tensor,  # (n_sites,)
    outputs: Tensor,  # (n_layers_written, n_sites, d_model)
    pending: dict[int, Tensor],
) -> None:
    deltas = targets - reader(acts)
    positions = torch.arange(acts.shape[1], device=acts.device)
    # (n_positions, n_sites), so that a matrix product sums what is written at each position.
    deltas_at = torch.where(positions[:, None] == reader.positions, deltas, 0.0)
    for written, rows in enumerate(outputs, start=layer):
        added = deltas_at @ rows.float()
        pending[written] = pending[written] + added if written in pending else added


def _write_deltas(acts: Tensor, layer: int, pending: dict[int, Tensor]) -> Tensor:
    steered = (acts[-1:] + pending.pop(layer)).to(acts.dtype)
    return torch.cat([acts[:-1], steered])


class FeatureReader:
    """The activations of chosen features of one layer, each at its position; nothing else is read.

    Called with a layer's feature input, (n_rows, n_positions, d_model), it returns the last row's
    activations, (n_sites,) float32 in the order of the sites. `positions` are theirs, (n_sites,).
    """

    def __init__(
        self, passes: Passes, layer: int, sites: Sequence[Site], silent: Collection[int]
    ) -> None:
        positions = _places(position for position, _ in sites)
        indices = _places(index for _, index in sites)
        tensor = partial(torch.tensor, device=passes.model.cfg.device)
        self._distinct_positions = tensor(list(positions))
        self._distinct_silent = tensor([position in silent for position in positions])
        self._row = tensor([positions[position] for position, _ in sites])
        self._column = tensor([indices[index] for _, index in sites])
        self._indices = tensor(list(indices))
        self._transcoders = passes.transcoders
        self._layer = layer
        self._encode = _encoder(passes.transcoders, layer, self._indices)
        self.positions = self._distinct_positions[self._row]

    def __call__(self, acts: Tensor) -> Tensor:
        activations = self._encode(acts[-1, self._distinct_positions])
        activations = activations.masked_fill(self._distinct_silent[:, None], 0)
        return activations[self._row, self._column].float()

    def decoder_rows(self) -> Tensor:
        """What each site's feature writes, (n_layers_written, n_sites, d_model)."""
        rows = self._transcoders._get_decoder_vectors(self._layer, self._indices)
        if rows.ndim == 2:
            rows = rows[:, None]
        return rows[self._column].transpose(0, 1)


def _places(values: Iterable[int]) -> dict[int, int]:
    """Each distinct value's place among them."""
    return {value: place for place, value in enumerate(dict.fromkeys(values))}


def _encoder(transcoders: Any, layer: int, indices: Tensor) -> Callable[[Tensor], Tensor]:
    """The map from feature inputs (n, d_model) to activations (n, n_indices) of a layer."""
    cross_layer = isinstance(transcoders, CrossLayerTranscoder)
    activation = (transcoders if cross_layer else transcoders[layer]).activation_function
    b_enc = transcoders.b_enc[layer] if cross_layer else transcoders[layer].b_enc
    if isinstance(activation, JumpReLU):
        threshold = activation.threshold[layer, 0] if cross_layer else activation.threshold
        threshold = threshold.expand_as(b_enc)[indices]
        return _rows_encoder(
            partial(_jump_relu, threshold=threshold),
            encoder_rows(transcoders, layer, indices),
            b_enc[indices],
            cross_layer,
        )
    if activation is nn.functional.relu or isinstance(activation, nn.ReLU):
        W_enc = encoder_rows(transcoders, layer, indices)
        return _rows_encoder(nn.functional.relu, W_enc, b_enc[indices], cross_layer)
    # Under TopK features compete, and under other functions they may: all have to be computed.
    function = partial(transcoders.apply_activation_function, layer)
    encode = _rows_encoder(function, encoder_rows(transcoders, layer, None), b_enc, cross_layer)
    return lambda x: encode(x)[:, indices]


def _rows_encoder(
    function: Callable[[Tensor], Tensor], W_enc: Tensor, b_enc: Tensor, cross_layer: bool
) -> Callable[[Tensor], Tensor]:
    """The encoder of rows W_enc (n, d_model), rounded where circuit-tracer rounds.

    A bit decides whether a feature at its threshold is active, and its graph has to agree: of a
    cross-layer transcoder the bias is added to what is rounded already.
    """

    def encode(x: Tensor) -> Tensor:
        x = x.to(W_enc.dtype)
        linear = nn.functional.linear
        return function(linear(x, W_enc) + b_enc if cross_layer else linear(x, W_enc, b_enc))

    return encode


def _jump_relu(before: Tensor, threshold: Tensor) -> Tensor:
    return before * (before > threshold)


def encoder_rows(transcoders: Any, layer: int, indices: Tensor | None) -> Tensor:
    """Encoder rows (n_indices, d_model), all of them for None; a lazy encoder's from its file."""
    if isinstance(transcoders, CrossLayerTranscoder):
        if not transcoders.lazy_encoder:
            W_enc = transcoders.W_enc[layer]
            return W_enc if indices is None else W_enc[indices]
        name = f"W_enc_{layer}"
        path, dictionary = Path(transcoders.clt_path) / f"{name}.safetensors", transcoders
    else:
        dictionary = transcoders[layer]
        if not dictionary.lazy_encoder:
            return dictionary.W_enc if indices is None else dictionary.W_enc[indices]
        name, path = "W_enc", Path(dictionary.transcoder_path)
    rows = slice(None) if indices is None else indices.cpu()
    with safe_open(path, framework="pt", device=str(dictionary.device)) as file:
        return file.get_slice(name)[rows].to(dictionary.dtype)
