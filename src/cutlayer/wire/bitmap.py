"""Some rows of several, one bit each: as long as all are many, however few are meant.

Row 8·i + b is bit b of byte i, the lowest first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def bitmap(rows: Iterable[int], count: int) -> bytes:
    """Mark `rows` among `count`.

    >>> bitmap([0, 2, 9], 12).hex(" ")
    '05 02'
    """
    bits = bytearray(-(-count // 8))
    for row in rows:
        bits[row >> 3] |= 1 << (row & 7)
    return bytes(bits)


def marked(bits: bytes) -> list[int]:
    """The rows marked, ascending.

    >>> marked(bytes([0x05, 0x02]))
    [0, 2, 9]
    """
    return [row for row in range(8 * len(bits)) if bits[row >> 3] >> (row & 7) & 1]
