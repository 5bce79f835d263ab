"""What a worker is: its version, and the model it serves."""

from typing import TYPE_CHECKING

from pydantic import BaseModel

from settings import Settings

if TYPE_CHECKING:
    from loading.loaded_model import LoadedModel


class Identity(BaseModel):
    """The worker's version and commit, its model and transcoders, and how they are run.

    `revisions` are the repositories that the weights are from, each as `owner/name@commit`; of
    directories there are none.
    """

    version: str
    commit: str | None
    model: str
    transcoders: str
    revisions: list[str]
    engine: str
    device: str
    dtype: str


def identify(loaded: "LoadedModel", settings: Settings) -> Identity:
    """The identity of the worker that serves a loaded model."""
    from loading.selection import select

    return Identity(
        version=settings.worker_version,
        commit=settings.worker_revision,
        model=loaded.entry.label,
        transcoders=loaded.entry.transcoder_label,
        revisions=list(loaded.revisions),
        engine=select(settings).engine,
        device=str(loaded.model.cfg.device),
        dtype=str(loaded.model.cfg.dtype).removeprefix("torch."),
    )
