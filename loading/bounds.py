"""How much weights and the files beside them may ask for, before memory is taken for it.

A few kilobytes can stand for gigabytes: an alias that is repeated, a number of layers, a header. A
file that goes over a bound is refused by its name. Bounds are far above what published weights
have. Importing this module imports no torch.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

MOST_LAYERS = 1000
MOST_FEATURES = 1 << 26  # of a layer of transcoders
# The index of a checkpoint of 90,000 tensors has 9 MB. A file of brackets takes 25 times its size.
JSON_BYTES = 16 << 20
JSON_DEPTH = 50
YAML_BYTES = 256 << 10  # read at some 100 kB/s; an address a layer has 10 kB
TOKENIZER_BYTES = 128 << 20  # a vocabulary of 262,000 tokens has 33 MB
SAFETENSORS_HEADER_BYTES = 16 << 20  # that of 90,000 tensors has 9 MB
ARRAY_HEADER_BYTES = 1 << 16

# Numbers in config.json that libraries make lists and tensors of: those of layers, by how their
# names end, and others by their names.
LAYERS = ("layer", "layers")
SIZES: dict[str, int] = {
    **dict.fromkeys(("n_positions", "max_position_embeddings", "sliding_window"), 1 << 27),
    **dict.fromkeys(("vocab_size", "num_labels", "type_vocab_size"), 1 << 24),
    **dict.fromkeys(("intermediate_size", "n_inner", "moe_intermediate_size"), 1 << 22),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "head_dim"), 1 << 20),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), 1 << 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 1 << 16),
}

_briefly = reprlib.Repr()
_briefly.maxstring = _briefly.maxother = 80


def brief(value: object) -> str:
    """A value from a file, for a message: its beginning."""
    if isinstance(value, int) and value.bit_length() > 1000:  # too long a number to print
        return "a number of hundreds of digits"
    return _briefly.repr(value)


def brief_list(names: Sequence[str]) -> str:
    """The first few of a file's fields, for a message."""
    more = len(names) - 3
    return ", ".join(brief(name).strip("'") for name in names[:3]) + (
        f" and {more} more" if more > 0 else ""
    )
