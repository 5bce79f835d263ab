"""Gzipped bytes, unpacked piece by piece: no piece is large, whatever the bytes are."""

import zlib
from collections.abc import Iterable, Iterator

_PIECE_BYTES = 1024 * 1024
_GZIP_WINDOW_BITS = 31


class Damaged(Exception):
    """The bytes are not gzipped, or not all of one gzipped file."""


class TooLarge(Exception):
    """More comes out than there may be."""


def unpacked(pieces: Iterable[bytes], *, most: int) -> Iterator[bytes]:
    """Yield what the pieces of a gzipped file hold.

    Args:
        most: bytes that may come out together. Gzip packs up to a thousand into one.

    Raises:
        Damaged, TooLarge: when they are met; what was yielded before is right.
    """
    expander = zlib.decompressobj(_GZIP_WINDOW_BITS)
    size = 0
    try:
        for piece in pieces:
            rest = piece
            while rest:
                if expander.eof:
                    raise Damaged("something follows the gzipped bytes")
                content = expander.decompress(rest, _PIECE_BYTES)
                size += len(content)
                if size > most:
                    raise TooLarge(f"more than {most} bytes")
                yield content
                rest = expander.unused_data if expander.eof else expander.unconsumed_tail
    except zlib.error:
        raise Damaged("not gzipped") from None
    if not expander.eof:
        raise Damaged("the gzipped bytes end too early")


def bounded(pieces: Iterable[bytes], *, most: int) -> Iterator[bytes]:
    """Yield the pieces as they are.

    Raises:
        TooLarge: they have more than `most` bytes together.
    """
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > most:
            raise TooLarge(f"more than {most} bytes")
        yield piece
