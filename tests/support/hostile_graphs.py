"""A small graph document, and the same with markup in every text that it has."""

import copy
import json

ELSEWHERE = "http://elsewhere.invalid/left"

# Each does something in a browser that takes it for markup, or is text that markup would change.
MARKUP = (
    f'<meta http-equiv="refresh" content="0;url={ELSEWHERE}">',
    f"<meta http-equiv=refresh content='0;url={ELSEWHERE}'><i>",
    "<img src=x onerror='window.ran=1'>",
    f'<img src="{ELSEWHERE}/seen.png">',
    "<svg onload='window.ran=1'><animate onbegin='window.ran=1' attributeName=x></svg>",
    "<script>window.ran=1</script>",
    f'<script src="{ELSEWHERE}.js"></script>',
    "<iframe srcdoc='<script>parent.ran=1</script>'></iframe>",
    f'<iframe src="{ELSEWHERE}"></iframe>',
    '<a href="javascript:window.ran=1" id=taken>here</a>',
    f'<a href="{ELSEWHERE}" target=_top>here</a>',
    f'<base href="{ELSEWHERE}/">',
    f'<form action="{ELSEWHERE}"><button>send</button></form>',
    "<style>* { display: none !important }</style>",
    f'<link rel=stylesheet href="{ELSEWHERE}.css">',
    f'<object data="{ELSEWHERE}"></object><embed src="{ELSEWHERE}">',
    "<details open ontoggle='window.ran=1'><summary>x</summary></details>",
    "<input autofocus onfocus='window.ran=1'>",
    "<video><source onerror='window.ran=1'></video>",
    "<math><mtext><table><mglyph><style><!--</style><img src onerror='window.ran=1'>",
    "\"><img src=x onerror='window.ran=1'>",
    "' onmouseover='window.ran=1' x='",
    '" onmouseover="window.ran=1" x="',
    "</text></svg><script>window.ran=1</script>",
    "</title></style></textarea><img src=x onerror='window.ran=1'>",
    "<b>bold</b>",
    "&lt;b&gt;&amp;&#60;img src=x onerror=window.ran=1&#62;",
    "<!-- comment",
    "javascript:window.ran=1",
    "${window.ran=1}`",
)

_FEATURE = "cross layer transcoder"
_KINDS = {"E": "embedding", "X": "mlp reconstruction error", "L": "logit"}


def _node(kind, layer, index, position, **fields):
    return {
        "node_id": f"{layer}_{index}_{position}",
        "feature": index,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": _KINDS.get(kind, _FEATURE),
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{layer}_{index}-0",
        "clerp": "",
        "influence": 0.3,
        "activation": None,
    } | fields


def sound():
    """A graph document of four tokens, three features, an error and two predictions."""
    nodes = [
        _node("F", "0", 3, 1, activation=1.5, clerp="a name"),
        _node("F", "1", 7, 2, activation=2.25, clerp="a noun"),
        _node("F", "1", 12, 3, activation=0.75),
        _node("X", "0", -1, 3),
        *(_node("E", "E", 20 + i, i, feature=i) for i in range(4)),
        _node("L", "3", 5, 3, token_prob=0.9, is_target_logit=True, influence=None,
              clerp='Output " le" (p=0.900)'),
        _node("L", "3", 6, 3, token_prob=0.1, influence=None, clerp='Output " la" (p=0.100)'),
    ]  # fmt: skip
    last = nodes[-2]["node_id"]
    links = [
        {"source": nodes[i]["node_id"], "target": target, "weight": weight}
        for i, target, weight in [
            (5, "0_3_1", 1.0), (6, "1_7_2", -0.5), (0, "1_12_3", 2.0), (1, "1_12_3", 0.25),
            (2, last, 3.0), (3, last, -1.0), (7, last, 0.5), (2, nodes[-1]["node_id"], 1.0),
        ]
    ]  # fmt: skip
    return {
        "metadata": {
            "slug": "small",
            "scan": "gemma-2-2b",
            "transcoder_list": [],
            "prompt_tokens": ["<bos>", "La", " capitale", " est"],
            "prompt": "La capitale est",
            "node_threshold": 0.8,
            "schema_version": 1,
            "info": {
                "creator_name": "Anonymous",
                "source_urls": [],
                "transcoder_set": "mine/transcoders",
                "timings_ms": {"attribute": 10.0},
            },
            "graph_scores": {"replacement_score": 0.9, "completeness_score": 0.9},
            "feature_details": {"neuronpedia_source_set": "gemmascope"},
        },
        "qParams": {
            "pinnedIds": [],
            "supernodes": [],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": links,
    }


def marked_up(markup):
    """The graph with this text wherever a document may have any text."""
    graph = sound()
    metadata = graph["metadata"]
    metadata |= {
        "slug": markup,
        "scan": markup,
        "title_prefix": markup,
        "prompt": markup,
        "prompt_tokens": [f"{markup}{i}" for i in range(4)],
        "transcoder_list": [markup],
        "feature_details": {"neuronpedia_source_set": markup, "feature_json_base_url": markup},
    }
    metadata["info"] |= {"creator_name": markup, "creator_url": markup, "source_urls": [markup]}
    for node in graph["nodes"]:
        is_logit = node["feature_type"] == "logit"
        node["clerp"] = f'Output "{markup}" (p={node["token_prob"]:.3f})' if is_logit else markup
        for field in ("jsNodeId", "vis_link", "url", "localClerp", "remoteClerp", markup):
            node[field] = markup
        for field in ("top_logit_effects", "bottom_logit_effects", "top_embedding_effects"):
            node[field] = [markup, markup]
        for field in ("isTmpFeature", "nodeColor", "tmpColor", "memberNodes"):
            node[field] = markup
    ids = [node["node_id"] for node in graph["nodes"]]
    graph["qParams"] |= {
        "pinnedIds": ids[:3],
        "clerps": json.dumps([[str(graph["nodes"][0]["feature"]), f"mine {markup}"]]),
    }
    return graph


def renamed(graph, names):
    """The graph with these ids for its first nodes, in its links too."""
    graph = copy.deepcopy(graph)
    new = dict(zip((node["node_id"] for node in graph["nodes"]), names, strict=False))
    for node in graph["nodes"]:
        node["node_id"] = new.get(node["node_id"], node["node_id"])
    for link in graph["links"]:
        for end in ("source", "target"):
            link[end] = new.get(link[end], link[end])
    return graph
