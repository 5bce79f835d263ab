"""How much memory and disk a model and its transcoders take, from their shapes."""

from dataclasses import dataclass

# Features active at a token in one layer: the upper end of what published sets are trained to.
ACTIVE_FEATURES = 100
# Bytes of a number: in memory the models run in bfloat16, the adjacency matrix in float32.
_IN_MEMORY, _IN_MATRIX = 2, 4


@dataclass(frozen=True)
class Shapes:
    """A model and its transcoders in numbers.

    `parameters` and the bytes a number takes on the disk are those of the repositories; the rest
    follows from the configuration of the model and the width of the transcoders.
    """

    parameters: float  # of the language model, as stored
    n_layers: int
    d_model: int
    d_vocab: int
    n_features: int  # a layer
    model_bytes: float = 2  # a number on the disk
    transcoder_bytes: int = 2
    cross_layer: bool = False
    all_decoders_stored: bool = False  # cross-layer files that have those to layers before too
    skip: bool = False
    n_active: int = ACTIVE_FEATURES  # at a token in one layer
    # Of a complete set, which has a Lorsa a layer besides, as wide as the transcoder: heads of
    # queries and keys, their dimensions, and the positions of the mask and the tables in a file.
    n_qk_heads: int = 0
    d_qk_head: int = 0
    n_ctx: int = 0

    @property
    def modules(self) -> int:
        """Modules with features in a layer."""
        return 2 if self.n_qk_heads else 1

    @property
    def encoder(self) -> float:
        """Numbers in all encoders."""
        return self.n_layers * self.modules * self.n_features * self.d_model

    @property
    def decoder(self) -> float:
        """Numbers in all decoders; a cross-layer feature has one for each layer from its own on."""
        return self.encoder * (self.n_layers + 1) / 2 if self.cross_layer else self.encoder

    @property
    def other(self) -> float:
        """Numbers in biases, thresholds, skip connections, and of queries and keys."""
        vectors = self.n_layers * self.modules * (2 * self.n_features + self.d_model)
        attention = 2 * self.n_layers * self.n_qk_heads * self.d_qk_head * (self.d_model + 2)
        tables = 2 * self.n_layers * self.n_ctx * self.d_qk_head
        return vectors + attention + tables + (self.n_layers * self.d_model**2 if self.skip else 0)


def disk_bytes(shapes: Shapes) -> float:
    """Bytes of the files that are downloaded."""
    decoder = shapes.n_layers * shapes.encoder if shapes.all_decoders_stored else shapes.decoder
    stored = shapes.encoder + decoder + shapes.other
    masks = shapes.n_layers * shapes.n_ctx**2  # a byte each, and not read
    return shapes.parameters * shapes.model_bytes + stored * shapes.transcoder_bytes + masks


def device_bytes(
    shapes: Shapes,
    *,
    lazy_encoder: bool,
    lazy_decoder: bool,
    n_tokens: int = 64,
    max_feature_nodes: int = 10_000,
) -> float:
    """About how many bytes the device has to have for a graph, in bfloat16.

    The weights that stay in memory, one layer of those that don't, the active features' decoders,
    and the rows of the adjacency matrix.
    """
    # The unembedding is a matrix of its own in memory, tied or not.
    resident = shapes.parameters + shapes.d_vocab * shapes.d_model + shapes.other
    resident += (0 if lazy_encoder else shapes.encoder) + (0 if lazy_decoder else shapes.decoder)
    read_layer = shapes.encoder / shapes.n_layers * (shapes.transcoder_bytes + _IN_MEMORY)
    active = n_tokens * shapes.n_layers * shapes.modules * shapes.n_active
    decoders = active * shapes.d_model * (shapes.decoder / shapes.encoder)
    columns = active + (shapes.n_layers * shapes.modules + 1) * n_tokens
    rows = min(max_feature_nodes, active)
    if shapes.n_qk_heads:  # all that is written to the residual stream, in float32
        decoders = columns * shapes.d_model * _IN_MATRIX / _IN_MEMORY
    return (
        (resident + decoders) * _IN_MEMORY
        + (read_layer if lazy_encoder else 0)
        + rows * columns * _IN_MATRIX
    )
