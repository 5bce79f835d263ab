"""The subgraph that a graph opens with, in words of the loaded model and the prompt."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from graphs import supernodes
from graphs.flow import Check, Flow
from graphs.supernodes import Output, Subgraph, Words
from loading.loaded_model import LoadedModel
from prompting.prompts import Prompt
from viewer import demo_features
from viewer.demo_features import LORSA, TRANSCODER

if TYPE_CHECKING:
    from attribution import PrunedGraph


def find_subgraph(
    pruned: "PrunedGraph",
    prompt: Prompt,
    logit_tokens: Mapping[int, str],
    loaded: LoadedModel,
    check: Check,
) -> Subgraph:
    """Groups of the graph's features and its strongest paths.

    Args:
        logit_tokens: token strings by index in the vocabulary, of the logits that are tokens.
        check: raises when the job should stop.
    """
    targets = pruned.graph.logit_targets
    words = Words(
        tokens=loaded.token_text.strings(prompt.ids),
        first_position=prompt.text_start,
        outputs=[
            Output("say", f'"{logit_tokens[target.vocab_idx]}"')
            if target.vocab_idx in logit_tokens
            else Output("raise", target.token_str.strip())
            for target in targets
        ],
        labels=dict(_labels(pruned, loaded)),
        levels_per_layer=2 if loaded.is_complete else 1,
    )
    return supernodes.find(Flow.of(pruned), words, check)


def _labels(pruned: "PrunedGraph", loaded: LoadedModel) -> Iterator[tuple[int, str]]:
    """The labels of features by row: the worker has those of the demo's own."""
    entry = loaded.entry
    info = {"transcoder_set": entry.transcoder_label}
    metadata = {"scan": entry.neuronpedia_id, "info": info}
    known = {kind: demo_features.features(metadata, kind) for kind in (TRANSCODER, LORSA)}
    if not any(known.values()):
        return
    graph = pruned.graph
    places = graph.active_features.cpu()[graph.selected_features.cpu()].tolist()
    for row, (layer, _, index) in enumerate(places):
        kind = TRANSCODER
        if loaded.is_complete:
            kind = TRANSCODER if layer % 2 else LORSA
            layer //= 2
        feature = known[kind].get(f"{layer}_{index}")
        if feature is not None:
            yield row, demo_features.label(feature)
