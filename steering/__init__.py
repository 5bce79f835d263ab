"""Features set to chosen activations: what is generated, and what else changes.

`feature_activations` reads what features do on a prompt, `generate` continues the prompt with
features set to other values, `generate_both` without and with that; `intervene` runs experiments on
a prompt as one batch and generates nothing; `next_token_logits` is a bare forward pass. They give
the numbers of circuit-tracer's `ReplacementModel` (`get_activations`, `feature_intervention` and
`feature_intervention_generate`) at the cost of the tokens: one forward pass a token over a
key-value cache, and of the transcoders only the rows of the features at hand. Complete replacement
models are steered and experimented on in the same way, and their attention has features too
(`layers_meant`).
"""

from steering.features import feature_activations
from steering.generation import Generation, generate, generate_both
from steering.interventions import Experiment, Frozen, Outcomes, check_frozen, intervene
from steering.kinds import active_one, layers_meant, refuse_beyond
from steering.options import Intervention, NewToken, Options, check_bounds
from steering.passes import next_token_logits, stoppable
from steering.readers import Feature

__all__ = [
    "Experiment",
    "Feature",
    "Frozen",
    "Generation",
    "Intervention",
    "NewToken",
    "Options",
    "Outcomes",
    "active_one",
    "check_bounds",
    "check_frozen",
    "feature_activations",
    "generate",
    "generate_both",
    "intervene",
    "layers_meant",
    "next_token_logits",
    "refuse_beyond",
    "stoppable",
]
