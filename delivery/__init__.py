"""Bytes -> the signed URL: compressed, in one PUT with its length, retried, and only where it may.

`check_url` and `check_headers` refuse early what could not succeed; `spool` gives a body whose
size and SHA-256 are known; `upload` sends it.
"""

from delivery.destination import check_headers, check_url, without_query
from delivery.put import Network
from delivery.spooling import Spooled, spool
from delivery.upload import RetryPolicy, upload

__all__ = [
    "Network",
    "RetryPolicy",
    "Spooled",
    "check_headers",
    "check_url",
    "spool",
    "upload",
    "without_query",
]
