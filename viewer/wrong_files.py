"""What a file is that is no graph document, and what to do with it, in words."""

import re

import orjson

_ZIP = b"PK\x03\x04"
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"<svg", b"%PDF")
_MAKE_ONE = "`client.py graph PROMPT -o FILE` makes one"


def what_it_is(content: bytes) -> str:
    """What a file seems to be, and what to do.

    Args:
        content: of the file, unpacked, as far as it was read.
    """
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start:
        return f"the file is empty; {_MAKE_ONE}"
    if start.startswith(_ZIP):
        return (
            "it is circuit-tracer's own file of a graph, or another archive, and the viewer shows "
            "JSON; `client.py graph` without `--format pt` makes that"
        )
    if start.startswith(_PICTURES):
        return f"it is a picture; {_MAKE_ONE}"
    if b"<graphml" in start or re.match(rb"<svg|<\?xml[^>]*>\s*<svg", start):
        return "it is an export; name the graph document that it was made from"
    if not start.startswith((b"{", b"[")):
        return f"it is no JSON; {_MAKE_ONE}"
    return _what_json_it_is(start)


def _what_json_it_is(text: bytes) -> str:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        return f"its JSON ends too soon or is broken; fetch it again, or {_MAKE_ONE}"
    if isinstance(document, dict) and isinstance(document.get("input"), dict):
        return f"it is a job, not its output; {_MAKE_ONE}"
    if isinstance(document, dict) and "sha256" in document:
        return "it is a receipt; name the file that was uploaded"
    return f"its metadata lack what a graph's have; {_MAKE_ONE}"
