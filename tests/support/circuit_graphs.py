"""Graph documents of the demo's prompts as files, for what tries sets of their features."""

from functools import cache

import orjson

from tests.support.demo_worker import PROMPT, ask

OTHER_PROMPT = "Rafael Nadal juega al"


@cache
def documents():
    """The graphs of two prompts with every active feature, and the first with few."""
    whole = [ask({"prompt": prompt, "node_threshold": 1}) for prompt in (PROMPT, OTHER_PROMPT)]
    return [*whole, ask({"prompt": PROMPT})]


def written(folder, document, name="graph", **parameters):
    """The file of a document with other groups and pins."""
    changed = {**document, "qParams": {**document["qParams"], **parameters}}
    path = folder / f"{name}.json"
    path.write_bytes(orjson.dumps(changed))
    return path
