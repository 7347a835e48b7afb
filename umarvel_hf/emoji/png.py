"""Writes palette PNGs without compression, so that the bytes are the same whatever zlib is installed."""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BLOCK = 65535  # longest stored block of deflate


def encode(pixels: bytes, width: int, palette: bytes) -> bytes:
    """An 8-bit palette PNG.

    Args:
        pixels: indices of ``palette``, row by row.
        palette: at most 256 colours, three bytes each.
    """
    height = len(pixels) // width
    assert len(pixels) == width * height and len(palette) % 3 == 0 and len(palette) <= 768
    rows = b"".join(b"\0" + pixels[y * width : (y + 1) * width] for y in range(height))  # 0: no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), _chunk(b"PLTE", palette), _chunk(b"IDAT", _stored(rows)), _chunk(b"IEND")]
    return _SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _stored(data: bytes) -> bytes:
    """A zlib stream of stored blocks."""
    blocks = [data[start : start + _BLOCK] for start in range(0, len(data), _BLOCK)]
    heads = [struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) for block in blocks]
    return b"\x78\x01" + b"".join(map(bytes.__add__, heads, blocks)) + struct.pack(">I", zlib.adler32(data))
