"""Text from outside made safe to show: names in files, messages of libraries, names of files.

A terminal obeys control characters, and lines of ours could be forged with a line break: whoever gives somebody a file
must not be able to do either. Everything that is printed for people goes through ``printable``; JSON
keeps the true text.
"""

from __future__ import annotations

import unicodedata

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what is not shown but acts: control and format characters (which may turn the direction of
writing round), halves of characters, and separators of lines and paragraphs."""


def printable(text: object, *, keep: str = "") -> str:
    """``text`` on one line, every character that would act on a terminal written as an escape sequence of Python's.

    ``keep``: such characters that stay, as the line breaks of a text that is of several lines on purpose.

    >>> printable("scores\\x1b[2J\\nparetopress: done")
    'scores\\\\x1b[2J\\\\nparetopress: done'
    >>> printable("Größe ≤ 3 kB")
    'Größe ≤ 3 kB'
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(_escaped(one) if one not in keep else one for one in plain)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    # As Python's own, but for every such character: those of formats as well.
    escaped = character.encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) > 1 else f"\\x{ord(character):02x}"
