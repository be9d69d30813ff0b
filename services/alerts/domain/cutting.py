"""Cutting what is too long, counted in UTF-16 units, the stricter of the two ways to count characters. Pure.

What would surprise you: a cut never divides what a reader sees as one character (a letter with its accents, a flag, a
family of emoji), nor a backslash from what it escapes.
"""

import unicodedata
from typing import Final

_JOINER: Final = "\u200d"
_TONES: Final = range(0x1F3FB, 0x1F400)
_FLAGS: Final = range(0x1F1E6, 0x1F200)


def units(text: str) -> int:
    """Return the length in UTF-16 units."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def clip(text: str, longest: int) -> str:
    """Return the text, cut with an ellipsis where it is longer than `longest` units."""
    if units(text) <= longest:
        return text
    end, left = 0, longest - 1
    for one in text:
        left -= 1 if ord(one) < 0x10000 else 2  # noqa: PLR2004 - beyond it, UTF-16 has two units
        if left < 0:
            break
        end += 1
    while end > 0 and _joined(text, end):
        end -= 1
    return text[:end] + "…"


def fit(text: str, longest: int) -> str:
    """Return the text without its last blocks (else lines) where it is too long, and how many are not shown."""
    if units(text) <= longest:
        return text
    gap = "\n\n" if "\n\n" in text else "\n"
    parts = text.split(gap)
    room = longest - units(f"{gap}and {len(parts)} more")
    kept = 0
    while kept < len(parts) and (room := room - units(parts[kept]) - (len(gap) if kept else 0)) >= 0:
        kept += 1
    return gap.join([*parts[:kept], f"and {len(parts) - kept} more"]) if kept else clip(text, longest)


def _joined(text: str, end: int) -> bool:
    """Whether a cut before `end` would divide a character that is seen as one."""
    before, after = text[end - 1], text[end]
    if unicodedata.category(after).startswith("M") or after == _JOINER or ord(after) in _TONES or before == _JOINER:
        return True
    if before == "\\":
        return (end - len(text[:end].rstrip("\\"))) % 2 == 1
    if ord(before) in _FLAGS and ord(after) in _FLAGS:
        start = end
        while start > 0 and ord(text[start - 1]) in _FLAGS:
            start -= 1
        return (end - start) % 2 == 1
    return False
