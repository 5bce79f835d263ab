"""The picture that the viewer saves: the graph as it is drawn, in a file that stands alone."""

import json
import math
import re
import struct
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from client import main
from tests.support.browser import keep_screenshot, needs_chromium, watched_page
from tests.support.complete_viewer_graphs import complete
from tests.support.hostile_graphs import MARKUP, marked_up, sound
from tests.support.large_graphs import large_graph, strongest

pytestmark = [pytest.mark.browser, needs_chromium]

SVG = "{http://www.w3.org/2000/svg}"
HARMLESS = {"svg", "g", "title", "rect", "path", "line", "circle", "text"}


def saved(page, form):
    """The file that the browser downloads on a click of this button: its name and its bytes."""
    with page.expect_download() as download:
        page.locator(".picture-export button").get_by_text(form, exact=True).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def parsed(content):
    """The picture's root, after a look whether it needs or does anything outside of itself."""
    root = ElementTree.fromstring(content)
    for element in root.iter():
        assert element.tag.removeprefix(SVG) in HARMLESS
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            assert "href" not in name
            assert "class" not in name
            assert "url(" not in value
    return root


def texts(root):
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def shapes(root):
    return Counter(text for text in texts(root) if text in {*"●▲◆◇■"})


def inside(root, page):
    """The picture in a page of its own: boxes of its elements, and of the whole."""
    page.set_content("<body style='margin:0'></body>")
    page.evaluate(
        "text => document.body.append(new DOMParser().parseFromString(text, 'image/svg+xml')"
        ".documentElement)",
        ElementTree.tostring(root, encoding="unicode"),
    )
    return page.evaluate(
        """() => {
            const root = document.querySelector('svg'), whole = root.getBoundingClientRect();
            return [...root.querySelectorAll('path, rect, circle, text')].filter(element => {
                const box = element.getBoundingClientRect();
                return box.left < whole.left - 1 || box.top < whole.top - 1
                    || box.right > whole.right + 1 || box.bottom > whole.bottom + 1;
            }).map(element => element.outerHTML);
        }"""
    )


def test_the_svg_shows_what_the_page_shows_and_needs_nothing_else(page, show, browser):
    graph = large_graph()
    pinned = strongest(graph, 12)
    groups = [["words of Texas and its places", *pinned[2:4]]]
    show(graph, pinnedIds=",".join(pinned), supernodes=json.dumps(groups), clickedId=pinned[9])
    name, content = saved(page, "SVG")
    assert name == "dallas-austin.svg"
    root = parsed(content)
    kinds = Counter(
        {"cross layer transcoder": "●", "mlp reconstruction error": "◆"}.get(
            node["feature_type"], "■"
        )
        for node in graph["nodes"]
    )
    assert shapes(root) == kinds
    links = page.evaluate(
        """d3.sum(
            document.querySelectorAll('.link-graph canvas'), canvas => canvas.drawn?.links.length
        )"""
    )
    lines = [path for path in root.iter(f"{SVG}path") if "transform" not in path.attrib]
    # Those of the canvases, and the subgraph's own are further ones.
    assert links > 40
    assert len([line for line in lines if re.fullmatch("M[^A-Z]+L[^A-Z]+", line.get("d"))]) == links
    words = " ".join(texts(root))
    for part in ("Subgraph", "Dallas,", "Austin", "words of Texas", "and its places", "L25"):
        assert part in words
    title = root.find(f"{SVG}title").text
    assert title == f"Attribution Graph: {graph['metadata']['prompt']}"
    with watched_page(browser, viewport={"width": 1000, "height": 800}) as alone:
        assert inside(root, alone) == []
        keep_screenshot(alone, "picture-alone")


def test_a_picture_without_pins_has_no_subgraph_and_no_hint(page, show):
    show(sound())
    _, content = saved(page, "SVG")
    root = parsed(content)
    assert "Subgraph" not in texts(root)
    assert b"Ctrl" not in content
    assert float(root.get("height")) < 450


def test_attention_s_features_are_triangles_in_the_picture(page, show, browser):
    show(complete(), pinnedIds="1_lor_7_3,1_cro_7_3,E_21_1,2_5_3")
    _, content = saved(page, "SVG")
    root = parsed(content)
    assert shapes(root)["▲"] == 1
    assert sum(path.get("d", "").endswith("Z") for path in root.iter(f"{SVG}path")) == 1
    with watched_page(browser) as alone:
        assert inside(root, alone) == []
        keep_screenshot(alone, "picture-complete")


def test_the_png_is_the_same_picture_in_twice_as_many_points(page, show):
    show(sound(), pinnedIds="0_3_1,1_7_2")
    root = parsed(saved(page, "SVG")[1])
    name, content = saved(page, "PNG")
    assert name == "small.png"
    assert content.startswith(b"\x89PNG")
    size = struct.unpack(">II", content[16:24])
    assert size == tuple(2 * math.ceil(float(root.get(side))) for side in ("width", "height"))
    colours = page.evaluate(
        """async bytes => {
            const blob = new Blob([new Uint8Array(bytes)], {type: 'image/png'});
            const bitmap = await createImageBitmap(blob);
            const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
            const context = canvas.getContext('2d');
            context.drawImage(bitmap, 0, 0);
            const {data} = context.getImageData(0, 0, bitmap.width, bitmap.height);
            return new Set(new Uint32Array(data.buffer)).size;
        }""",
        list(content),
    )
    assert colours > 20


@pytest.mark.parametrize("number", [5, 20, 23, 25, 26])
def test_markup_in_a_graph_is_text_in_its_picture(page, show, browser, number):
    show(marked_up(MARKUP[number]))
    root = parsed(saved(page, "SVG")[1])
    assert any(MARKUP[number] in text for text in texts(root))
    with watched_page(browser) as alone:
        assert inside(root, alone) is not None
        assert alone.evaluate("window.ran") is None


def test_characters_that_xml_can_t_hold_are_written_in_words(page, show):
    graph = sound()
    graph["metadata"]["prompt_tokens"][1:] = ["a\x00b\x1bc", "\ud83d", "d\uffffe"]
    show(graph)
    words = texts(parsed(saved(page, "SVG")[1]))
    assert {"a\\x00b\\x1bc", "\\ud83d", "d\\uffffe"} <= set(words)


def test_the_client_writes_the_svg_with_the_document_s_own_subgraph(tmp_path, capsys, page, show):
    graph = sound()
    graph["qParams"] |= {
        "pinnedIds": ["0_3_1", "1_7_2", "3_5_3"],
        "supernodes": [["<b>both</b>", "0_3_1", "1_7_2"]],
    }
    path = tmp_path / "small.json"
    path.write_text(json.dumps(graph))
    assert main(["export", str(path), "--to", "svg"]) == 0
    assert "small.svg" in capsys.readouterr().out
    root = parsed((tmp_path / "small.svg").read_bytes())
    assert "<b>both</b>" in texts(root)
    show(graph)
    assert Counter(texts(root)) == Counter(texts(parsed(saved(page, "SVG")[1])))


def test_a_graph_that_can_t_be_drawn_has_no_picture_and_the_client_says_why(tmp_path, capsys):
    graph = sound()
    graph["nodes"][0]["layer"] = "<p class='no-graph'>x</p>"
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(graph))
    assert main(["export", str(path), "--to", "svg"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "odd.json: This graph can't be shown: nodes[0].layer must be E or a number" in said
    assert not (tmp_path / "odd.svg").exists()
