"""Scripts and styles of the web pages, so that a page loads nothing from elsewhere.

`vendor/` has published packages' files as they are, one folder a package, pinned in `pins.json`
and fetched by `make web-assets`. `viewer.js` and `viewer.css` are this project's own.
"""

from pathlib import Path

DIRECTORY = Path(__file__).parent
VENDOR = DIRECTORY / "vendor"
