"""Scripts and styles of the web pages, so that a page loads nothing from elsewhere.

`vendor/` has published packages' files as they are, one folder a package, pinned in `pins.json`
and fetched by `make web-assets`. `viewer.js`, `viewer.css` and
`docs.html` are this project's own.
"""

from pathlib import Path

DIRECTORY = Path(__file__).parent
VENDOR = DIRECTORY / "vendor"
