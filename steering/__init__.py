"""Generation with features set to chosen activations.

`feature_activations` reads what features do on a prompt, `generate` continues the prompt with
features set to other values, `generate_both` without and with that; `next_token_logits` is a bare
forward pass. They give the numbers of circuit-tracer's `ReplacementModel` (`get_activations`,
`feature_intervention_generate`) at the cost of the tokens: one forward pass a token over a
key-value cache, and of the transcoders only the rows of the features at hand. Complete replacement
models are steered in the same way, and their attention has features too (`layers_meant`).
"""

from steering.features import feature_activations
from steering.generation import Generation, generate, generate_both
from steering.kinds import active_layer, layers_meant
from steering.options import Intervention, NewToken, Options, check_bounds
from steering.passes import next_token_logits

__all__ = [
    "Generation",
    "Intervention",
    "NewToken",
    "Options",
    "active_layer",
    "check_bounds",
    "feature_activations",
    "generate",
    "generate_both",
    "layers_meant",
    "next_token_logits",
]
