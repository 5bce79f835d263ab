"""circuit-tracer's page for graphs, in which no text of a graph can become markup.

Three things see to that, each without the others:

- circuit-tracer's scripts write markup as template literals, `.html(`<b>${label}</b>`)`. They are
  served with a tag, `.html(markup`<b>${label}</b>`)`, and `markup` of web_assets/viewer.js escapes
  every value. `.html` of anything else shows it as text.
- The Trusted Types of the page's policy: the browser takes nothing else than what `markup` made.
- The rest of the policy: no script of other origin or inside the document runs, and the page can
  ask no other host for anything.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import web_assets

# Files of web_assets/, which have the same paths in this server's addresses.
_PAGE_FOLDER = "vendor/circuit-tracer/circuit_tracer/frontend/assets"
# These replace the scripts that circuit-tracer's page loads from other hosts. Two of those have no
# replacement: one reloads the page while its author edits it, one reads .npy files.
_LOCAL_SCRIPTS = (
    "vendor/d3/dist/d3.min.js",
    "jetpack_into_d3.js",
    "vendor/d3-jetpack/build/d3-jetpack.cjs",
    "vendor/dagre/dist/dagre.min.js",
    "vendor/pako/dist/pako.min.js",
)
_ADDITIONS = (
    "<link rel='stylesheet' href='./viewer.css'>\n"
    "<link rel='stylesheet' href='./worker_panel.css'>\n"
    "<script src='./safe_markup.js'></script>\n"
    "<script src='./graph_check.js'></script>\n"
    "<script src='./feature_names.js'></script>\n"
    "<script src='./node_links.js'></script>\n"
    "<script src='./complete_graphs.js'></script>\n"
    "<script src='./legend.js'></script>\n"
    "<script src='./axis_labels.js'></script>\n"
    "<script src='./subgraph_layout.js'></script>\n"
    "<script src='./key_handlers.js'></script>\n"
    "<script src='./subgraph_head.js'></script>\n"
    "<script src='./kept_labels.js'></script>\n"
    "<script src='./graph_list.js'></script>\n"
    "<script src='./picture_export.js'></script>\n"
    "<script src='./feature_labels.js'></script>\n"
    "<script src='./late_examples.js'></script>\n"
    "<script src='./viewer.js'></script>\n"
    "<script src='./compare_link.js'></script>\n"
    "<script src='./worker_questions.js'></script>\n"
    "<script src='./worker_panel.js'></script>\n"
)
# What is served instead of some text of circuit-tracer's scripts, whose files stay as they are.
_MEMBERS = b".appendMany('div.member-circle', d => d.node.memberNodes)"
_BOX = b"g.setNode(d.nodeId, {width: nodeWidth, height: nodeHeight"
_NAME_S_HEIGHT = b"selForceNodes.find(e => e.node == d).textHeight"
_CHOICE = b"append('span').text(d => d.key)"
_CLEAR = b"ctx.clearRect(-c.margin.left"
_COLOUR_AGAIN = b"d.color = d3.interpolatePRGn(_linearTScale(_linearPctScale(d.pctInput)))"
_CHANGES = (
    # The tag of `markup`.
    (b".html(`", b".html(markup`"),
    # Attention's features, of which the scripts know nothing, are features too.
    (b"d.feature_type == 'cross layer transcoder'", b"isFeature(d)"),
    (b"d.feature_type != 'cross layer transcoder'", b"!isFeature(d)"),
    # Attention's are drawn otherwise.
    (_MEMBERS, _MEMBERS + b".classed('lorsa', d => d.feature_type == 'lorsa')"),
    # The document's groups are shown as its pins are, where the address has none of its own.
    (b"if (urlSupernodes) visState", b"if (util.params.get('supernodes')) visState"),
    # A group's name is its id in the subgraph, and an empty one is none.
    (b"nodeIdToNode[label] ?", b"!label || nodeIdToNode[label] ?"),
    # A document's places that aren't those of its subgraph's nodes are left out.
    (b"if (visState.sg_pos){", b"if (arePlacesOf(selForceNodes, visState.sg_pos)){"),
    # Of links, the one of the largest weight comes first, negative or not.
    (b"d.tmpClickedSourceLink?.pctInput", b"Math.abs(d.tmpClickedSourceLink.weight)"),
    (b"d.tmpClickedTargetLink?.pctInput", b"Math.abs(d.tmpClickedTargetLink.weight)"),
    # Nodes of the subgraph are as wide as names that can be read, and as high as theirs.
    (b"var nodeWidth = 75", b"var nodeWidth = 96"),
    (_BOX + b"})", _BOX + b" + " + _NAME_S_HEIGHT + b"})"),
    (b"ys(pos.y) - nodeHeight/2", b"ys(pos.y) - (nodeHeight + node.textHeight)/2"),
    (b"window.dagre.layout(g)", b"window.dagre.layout(g); makeRoom(g, c.width, c.height)"),
    # The names of the choices above the subgraph.
    (_CHOICE, b"append('span').text(d => subgraphChoice(d.key))"),
    # The lines of a canvas, for the picture of the graph.
    (_CLEAR, b"ctx.canvas.drawn = {links, strokeWidthOffset, colorOverride}; " + _CLEAR),
    # The scripts go through all links, of which a graph may have 100,000, for those of a few nodes.
    (b"clickedLinks = links.filter(", b"clickedLinks = linksOf(data, visState.clickedId).filter("),
    (b"sgLinks = links\n", b"sgLinks = linksInto(pinnedNodes)\n"),
    # Of each link they write what they never read, or compute the same twice.
    (b"link.linkId = link.sourceNode.nodeId + '__' + link.targetNode.nodeId", b""),
    (b"links.idToLink = Object.fromEntries(links.map(d => [d.linkId, d]))", b""),
    (b"links.forEach(d => {\n    var [x1, y1]", b";[].forEach(d => {\n    var [x1, y1]"),
    (_COLOUR_AGAIN, b"d.color = d.pctInputColor"),
    # Labels of this tab's graphs: every graph of that name would have them, since the port is the
    # same each time.
    (b"localStorage.", b"sessionStorage."),
)
_MEDIA_TYPES = {".cjs": "text/javascript", ".js": "text/javascript", ".css": "text/css"}


@dataclass(frozen=True)
class Page:
    """circuit-tracer's page with local scripts, the page that compares two graphs, the files they
    refer to by their paths in this server's addresses, and their Content-Security-Policy."""

    text: str
    comparison: str
    files: Mapping[str, Path]
    policy: str

    def read(self, name: str) -> tuple[bytes, str]:
        """The bytes to serve for one of `files`, and their media type.

        Raises:
            KeyError: the page refers to no such file.
        """
        path = self.files[name]
        content = path.read_bytes()
        if name.startswith(_PAGE_FOLDER) and path.suffix == ".js":
            for written, served in _CHANGES:
                content = content.replace(written, served)
        return content, _MEDIA_TYPES[path.suffix]


@cache
def read_page() -> Page:
    """circuit-tracer's page, in which every script and style has an address of this server."""
    text = (web_assets.DIRECTORY / _PAGE_FOLDER / "index.html").read_text(encoding="utf-8")
    text = re.sub(r"(src|href)='\./", rf"\1='./{_PAGE_FOLDER}/", text)
    scripts = "".join(f"<script src='./{name}'></script>\n" for name in _LOCAL_SCRIPTS)
    text = re.sub(r"(<script src='https://[^']+'></script>\n)+", scripts, text)
    text = text.replace("<script>", f"{_ADDITIONS}<script>", 1)
    text = text.replace("<title>", "<link rel='icon' href='data:,'>\n<title>", 1)
    comparison = (web_assets.DIRECTORY / "compare.html").read_text(encoding="utf-8")
    names = re.findall(r"(?:src|href)='\./([^']+)'", text + comparison)
    files = {name: web_assets.DIRECTORY / name for name in names}
    [script] = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; "
        "style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types viewer"
    )
    return Page(text, comparison, files, policy)
