"""generate-graph with `format: "pt"`: a graph before pruning, as circuit-tracer's own file."""

from typing import TYPE_CHECKING

from actions.job import Job
from delivery import Spooled, spool_saved
from errors import InvalidInput
from graphs import torch_file
from loading.loaded_model import LoadedModel
from schemas import GenerateGraphRequest

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph


def check_file(request: GenerateGraphRequest, loaded: LoadedModel, job: Job) -> None:
    """Check, before any work, that the loaded model's graphs have this form and a way out.

    Raises:
        InvalidInput: the model is a complete replacement model, or the file has no place to go.
    """
    if loaded.is_complete:
        raise InvalidInput(
            'format is "pt", circuit-tracer\'s own file, but the loaded set '
            f"{loaded.entry.transcoder_label} makes a complete replacement model, whose graphs "
            "circuit-tracer has no form for; ask for json"
        )
    if request.signed_url is None and not job.takes_files:
        raise InvalidInput(
            'format is "pt", a file, but a job\'s output is JSON; pass signed_url to have the file '
            'uploaded, or post the fields to /generate-graph of start.py, without {"input": ...}'
        )


def write_file(graph: "Graph", slug: str, job: Job, *, compress: bool) -> Spooled:
    """The graph's file, and its sizes in the job's counts."""
    job.counts["nodes"] = len(graph.adjacency_matrix)
    job.counts["links"] = torch_file.count_links(graph, job.check)
    return spool_saved(
        lambda file: torch_file.save(graph, file),
        compress=compress,
        check=job.check,
        file_name=f"{slug}.pt",
        advice="lower max_feature_nodes",
    )
