"""What tests ask the viewer's page in a browser."""

from urllib.parse import urlencode

_ELEMENTS = (
    *("html", "head", "body", "meta", "link", "title", "script", "div", "span", "select", "option"),
    *("button", "input", "label", "a", "b", "svg", "g", "path", "rect", "text", "circle", "line"),
    *("canvas", "defs", "linearGradient", "stop", "p"),
)

# Elements that the page's own scripts don't make, and attributes that do something.
_FOREIGN = """elements => {
    const made = new Set(elements);
    const here = location.origin + '/', links = [here, 'https://www.neuronpedia.org/'];
    const isOurs = element => {
        const names = element.getAttributeNames();
        if (names.some(name => name.startsWith('on') || /["'<>]/.test(name))) return false;
        if (element.localName === 'meta') return !element.httpEquiv;
        if (element.localName === 'script') return !element.src || element.src.startsWith(here);
        if (element.localName === 'link')
            return element.href === 'data:,' || element.href.startsWith(here);
        if (element.localName === 'a') return links.some(link => element.href.startsWith(link));
        return made.has(element.localName);
    };
    const all = [...document.querySelectorAll('*')];
    return all.filter(element => !isOurs(element)).map(element => element.outerHTML);
}"""


def assert_only_its_own_elements(page, url, also=()):
    """The page is where it was, and has only elements and attributes of its scripts.

    `also` are elements that the scripts of this page make besides.
    """
    assert page.url.startswith(url)
    assert len(page.frames) == 1
    assert page.evaluate(_FOREIGN, [*_ELEMENTS, *also]) == []


def boxes(page):
    """The middle of each node that is drawn."""
    return page.evaluate(
        """[...document.querySelectorAll('.link-graph text.node')].map(node => {
            const box = node.getBoundingClientRect();
            return {x: box.x + box.width / 2, y: box.y + box.height / 2};
        })"""
    )


def hover(page, box):
    """Move onto a node, from elsewhere, and wait for its tooltip."""
    page.mouse.move(5, 5)
    page.mouse.move(box["x"], box["y"], steps=3)
    page.locator(".tooltip:not(.tooltip-hidden)").wait_for(state="attached")


def open_graph(page, url, **query):
    """Open the viewer's page, and wait until a graph is there, or why there is none."""
    page.goto(f"{url}?{urlencode(query)}")
    page.locator(".link-graph text.node, p.no-graph").first.wait_for()


def click_node(page, node_id):
    """Click where the node is drawn."""
    x, y = page.evaluate(
        """id => {
            const node = d3.selectAll('.link-graph text.node').filter(d => d.node_id === id).node();
            const box = node.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }""",
        node_id,
    )
    page.mouse.click(x, y)


def clicked(page):
    """The ids of the nodes that are clicked."""
    return page.evaluate("d3.selectAll('.link-graph text.node.clicked').data().map(d => d.node_id)")


def hint(page):
    """What the subgraph says to do, as its style sheet has it."""
    return page.evaluate("getComputedStyle(document.querySelector('.subgraph'), '::after').content")


def drawn_on(page):
    """Wait until the page has drawn what its scripts have done by now."""
    page.evaluate(
        "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
    )


def until_still(page, selector):
    """Wait until what the selector finds is at the same places in two frames."""
    page.wait_for_function(
        """selector => {
            const found = [...document.querySelectorAll(selector)];
            const places = JSON.stringify(found.map(element => element.getBoundingClientRect()));
            const isStill = places === window.lastPlaces;
            window.lastPlaces = places;
            return isStill;
        }""",
        arg=selector,
    )


def boxes_of(page, selector):
    """Where each element is that the selector finds and the page shows."""
    return page.evaluate(
        """selector => [...document.querySelectorAll(selector)]
            .filter(element => element.getClientRects().length)
            .map(element => element.getBoundingClientRect().toJSON())""",
        selector,
    )


def overlap(one, other):
    """Whether two boxes cover one another by more than a point."""
    width = min(one["right"], other["right"]) - max(one["left"], other["left"])
    height = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
    return width > 1 and height > 1
