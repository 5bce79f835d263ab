"""Bytes -> the signed URL: compressed, in one PUT with its length, retried, and only where it may.

`read_target` refuses early what could not succeed; `spool` and `spool_saved` give a body whose size
and SHA-256 are known; `upload` sends it.
"""

from delivery.spooling import Spooled, spool, spool_saved
from delivery.target import Target, read_target
from delivery.upload import RetryPolicy, upload

__all__ = ["RetryPolicy", "Spooled", "Target", "read_target", "spool", "spool_saved", "upload"]
