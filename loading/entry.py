"""What is known of a model and its transcoders: their names, and how they are best loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loading.complete_tree import split_directory
from loading.footprint import Shapes
from loading.references import Reference

Engine = Literal["transformerlens", "nnsight"]
# What computes a graph. The second one has attention as features too, from a complete set.
AttributionEngine = Literal["circuit-tracer", "lm-saes-crm"]


@dataclass(frozen=True)
class ModelEntry:
    """A model and its transcoders, by name, and how they are best loaded.

    `model` and `transcoder_set` are Hugging Face ids or directories; `neuronpedia_id` is what
    graphs carry as `scan`, `source_set` the name of the transcoders on Neuronpedia where known,
    `weight_urls` where the transcoders' weights are described, if not at their own repository.

    A complete set has Lorsas besides, whose name on Neuronpedia is `lorsa_source_set`. They are
    part of `transcoder_set`, or where that is one of circuit-tracer's, `lorsa_set` names them.
    """

    model: str
    transcoder_set: str
    neuronpedia_id: str
    source_set: str | None = None
    weight_urls: tuple[str, ...] = ()
    recommended_dtype: str | None = None  # on a GPU; None: that of the model's configuration
    engine: Engine = "transformerlens"  # recommended, as the next two are
    lazy_encoder: bool = False
    lazy_decoder: bool = True
    shapes: Shapes | None = None  # for the memory it needs
    attribution_engine: AttributionEngine | None = "circuit-tracer"  # None: what the set holds
    lorsa_source_set: str | None = None
    lorsa_set: str | None = None
    short_name: str | None = None  # of the set, as a setting may call it

    @property
    def label(self) -> str:
        """The model's name for callers, who have no use for a path of this machine."""
        return self.neuronpedia_id if Path(self.model).is_dir() else self.model

    @property
    def transcoder_label(self) -> str:
        """The transcoders' name for callers."""
        if self.short_name is not None:
            return self.short_name
        directory = Path(self.transcoder_set)
        if split_directory(self.transcoder_set) is not None:
            return "/".join(directory.parts[-3:])
        return "/".join(directory.parts[-2:]) if directory.is_dir() else self.transcoder_set

    @property
    def source_urls(self) -> tuple[str, ...]:
        """Where a reader finds the features' pages and the transcoders' weights."""
        urls = []
        for source_set in filter(None, [self.source_set, self.lorsa_source_set]):
            urls.append(f"https://neuronpedia.org/{self.neuronpedia_id}/{source_set}")
        directory = Path(self.transcoder_set)
        if self.weight_urls:
            urls += self.weight_urls
        elif not directory.is_dir() and split_directory(self.transcoder_set) is None:
            repository = Reference.parse(self.transcoder_set).repository
            urls.append(f"https://huggingface.co/{repository}")
        return tuple(urls)

    @property
    def model_names(self) -> frozenset[str]:
        """What a request may call the model, in small letters."""
        names = {self.model, self.model.partition("@")[0], self.neuronpedia_id}
        return frozenset(name.lower() for name in names)
