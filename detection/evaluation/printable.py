"""Names from data sets and folders, made safe to print."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

# Control characters, surrogates, which can't be encoded, and line and paragraph separators.
CATEGORIES = ("Cc", "Cn", "Cs", "Zl", "Zp")
BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # change the direction of the text after them


def printable(text: str) -> str:
    """Returns ``text`` in one line: line ends and control characters become escapes, such as ``\\n`` and ``\\x00``."""
    if text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in CATEGORIES or c in BIDIRECTIONAL else c for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
