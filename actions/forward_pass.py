"""forward-pass: the likeliest next tokens of a prompt."""

import steering
from actions.bounds import check_n_tokens
from actions.job import Job, prepare_prompt
from actions.tokens import likely
from attribution.salient_logits import salient_logits
from loading.loaded_model import LoadedModel
from schemas import ForwardPassRequest, ForwardPassResponse


def run(request: ForwardPassRequest, loaded: LoadedModel, job: Job) -> ForwardPassResponse:
    """The salient logits: as few of the likeliest as reach `desired_logit_prob` together.

    The same selection as an attribution graph's logit nodes, of the same logits, at most
    `max_n_logits`.
    """
    check_n_tokens("max_n_logits", request.max_n_logits, loaded)
    # Callers count the tokens of a long prompt before they ask for its graph.
    prompt = prepare_prompt(request, loaded, job, up_to_context=True)
    with job.model(loaded), job.stage("forward"):
        logits = steering.next_token_logits(loaded.model, prompt.ids)
        salient = salient_logits(logits, request.max_n_logits, request.desired_logit_prob)
    named = likely(salient.token_ids.tolist(), salient.probabilities.tolist(), loaded)
    return ForwardPassResponse(
        prompt=prompt.text,
        input_tokens=loaded.token_text.strings(prompt.ids),
        salient_logits=named,
        total_salient_tokens=len(named),
        cumulative_probability=float(salient.probabilities.sum()),
    )
