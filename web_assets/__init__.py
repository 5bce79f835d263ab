"""Scripts and styles of the web pages, so that a page loads nothing from another host.

`vendor/` has files of published packages, unchanged, each at its path in its package. `pins.json`
pins them and `make web-assets` fetches them. The other files here are this project's own.
"""

from pathlib import Path

DIRECTORY = Path(__file__).parent
VENDOR = DIRECTORY / "vendor"
