"""A server that answers `POST /api/features` as Neuronpedia does, on loopback.

The form is that of `apps/webapp/app/api/features/route.ts` and its database's models, in
github.com/hijohnnylin/neuronpedia at ebb8426.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from remote.labels.cache import LabelCache
from remote.labels.labels import Labels
from remote.labels.neuronpedia import Neuronpedia
from remote.retries import Patience
from tests.support.uvicorn_thread import in_a_thread

MODEL, SOURCE_SET, LORSA_SET = "gemma-2-2b", "gemmascope-transcoder-16k", "lorsa-8x"
DETAILS = {"neuronpedia_source_set": SOURCE_SET, "neuronpedia_lorsa_source_set": LORSA_SET}
PATIENCE = Patience(outage_s=0.2, busy_s=0.2, first_wait_s=0.01, longest_wait_s=0.05)


@dataclass
class Site:
    """Features by (model, source, index), and what was asked."""

    features: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    asked: list[list[dict[str, Any]]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""
    answers: float = float("inf")  # before it fails

    def add(self, source, index, *explanations, **fields):
        found = feature(source, index, *explanations, **fields)
        self.features[MODEL, source, str(index)] = found

    async def answer(self, request):
        body = await request.json()
        self.asked.append(body)
        if len(self.asked) > self.answers:
            return JSONResponse({"message": "Unknown Error"}, status_code=500)
        self.keys.append(request.headers.get("x-api-key"))
        wanted = [(one["modelId"], one["layer"], str(one["index"])) for one in body]
        most = body[0]["maxActsToReturn"]
        found = [self.features[name] for name in wanted if name in self.features]
        return JSONResponse([{**one, "activations": one["activations"][:most]} for one in found])


@contextmanager
def neuronpedia():
    site = Site()
    application = Starlette(routes=[Route("/api/features", site.answer, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(application, log_level="warning", access_log=False))
    with in_a_thread(server) as site.url:
        yield site


def labels_from(url, folder, *, key=None, patience=PATIENCE, **options):
    """Labels, with the sentences that they say in `labels.said`."""
    said = []
    cache = LabelCache(folder / "labels.sqlite")
    labels = Labels(Neuronpedia(url, key, patience), cache, said.append, **options)
    labels.said = said
    return labels


def feature(source, index, *explanations, activations=None, **fields):
    """A feature as Neuronpedia's database has it."""
    name = {"modelId": MODEL, "layer": source, "index": str(index)}
    if activations is None:
        activations = [activation(name, ["▁The", "▁capital", "▁of", "▁Texas"], [0, 1.5, 0, 9.25])]
    return {
        **name,
        "sourceSetName": source.partition("-")[2],
        "creatorId": "clkht01d40000jv08hvalcvly",
        "createdAt": "2025-05-20T00:00:00.000Z",
        "maxActApprox": 12.5,
        "hasVector": False,
        "vector": [],
        "vectorLabel": None,
        "hookName": None,
        "topkCosSimIndices": [],
        "topkCosSimValues": [],
        "neg_str": ["▁Entdecken", "handa"],
        "neg_values": [-0.5, -0.25],
        "pos_str": ["▁Austin", "▁Texas"],
        "pos_values": [1.5, 1.25],
        "frac_nonzero": 0.0015,
        "freq_hist_data_bar_heights": [40, 20, 4],
        "freq_hist_data_bar_values": [1, 5, 10],
        "logits_hist_data_bar_heights": [1, 2],
        "logits_hist_data_bar_values": [-1, 1],
        "decoder_weights_dist": [],
        "umap_cluster": None,
        "explanations": [
            {
                "description": text,
                "explanationModelName": "gpt-4o-mini",
                "typeName": "oai_token-act-pair",
            }
            for text in explanations
        ],
        "activations": activations,
        **fields,
    }


def activation(name, tokens, values):
    return {
        "id": "cmaw000000000",
        "tokens": tokens,
        "dataIndex": None,
        **name,
        "dataSource": "monology/pile-uncopyrighted",
        "maxValue": max(values),
        "maxValueTokenIndex": values.index(max(values)),
        "minValue": min(values),
        "values": values,
        "dfaValues": [],
        "creatorId": "clkht01d40000jv08hvalcvly",
        "createdAt": "2025-05-20T00:00:00.000Z",
        "lossValues": [],
        "logitContributions": None,
        "qualifyingTokenIndex": None,
    }
