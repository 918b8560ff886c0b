"""Text from the other side is shown to people; this keeps it from steering their terminal or their eyes."""

from __future__ import annotations

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def printable(text: str) -> str:
    """`text` with every control, format and separator character except the blank replaced.

    That covers terminal escape sequences (ESC, CSI), carriage returns that overwrite a line, and the marks that
    reverse the direction of writing.

    Examples:
        >>> printable("layers 2:28\\x1b[2K\\r")
        'layers 2:28�[2K�'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _REPLACEMENT for c in text)
