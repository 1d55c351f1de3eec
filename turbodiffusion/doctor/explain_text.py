"""Logs as people paste them, turned into text that patterns can be searched in.

A log comes as UTF-8, as UTF-16 (``>`` in PowerShell 5) or as a mixture (``>>`` there), with the
colours of a terminal, the progress bars of pip, the frames that rich draws and the line breaks of
a narrow window. What is left here is words with single blanks between them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import BinaryIO

CHUNK = 1 << 20
"""Characters searched at a time. Memory stays at a few times this, whatever the log's size."""

OVERLAP = 1 << 16
"""Characters searched again with the next chunk: more than any pattern spans."""

_ESCAPES = re.compile(
    r"(?:\x1b|\^\[|\u241b)\[[0-?]{0,64}[ -/]{0,8}[@-~]"  # colours, cursor; also as ^[ and ␛
    r"|\x1b\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)"  # window titles, links
    r"|\x1b[@-Z\\^_]"
)
_COLOURS = re.compile(r"\[(?:\d{1,3}(?:;\d{1,3}){0,7}m|K(?!\w))")
"""Colours that lost their escape character on the way."""
_PARAMETERS = re.compile(r"(\.py::[\w:]{1,200})\[[^\n]*?(?= - |$)", re.MULTILINE)
"""What pytest shows in brackets behind a test's name may be any text, error messages included."""
_LOOKS = {
    **dict.fromkeys(range(0x2500, 0x2580), " "),  # lines and corners of a drawn frame
    **dict.fromkeys((0x2018, 0x2019, 0x201B), "'"),  # quotes that word processors make
    **dict.fromkeys((0x201C, 0x201D), '"'),
    **dict.fromkeys((0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF), ""),  # invisible
}
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HARD_BREAK = re.compile(r"(?<=[^\n]{40})\n[ \t]*")


def decoded(stream: BinaryIO) -> Iterator[str]:
    """The text of a binary stream, piece by piece, in the encoding its first bytes show.

    Bytes that do not fit become a replacement character; patterns need nothing but ASCII. NULs
    are left out, which makes text of UTF-16 without a mark readable too.
    """
    head = stream.read(CHUNK)
    mark, encoding = next((pair for pair in _BOMS if head.startswith(pair[0])), (b"", "utf-8"))
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    piece = head[len(mark) :]
    while piece:
        yield decoder.decode(piece).replace("\0", "")
        piece = stream.read(CHUNK)
    yield decoder.decode(b"", final=True).replace("\0", "")


def pieces_of(text: str) -> Iterator[str]:
    """A text in pieces that :func:`chunks` takes without copying the rest each time."""
    return (text[start : start + CHUNK] for start in range(0, len(text), CHUNK))


def chunks(pieces: Iterator[str]) -> Iterator[tuple[int, str, bool]]:
    """Overlapping parts of a text as (lines before it, text, whether it is the last)."""
    held, line = "", 0
    for piece in pieces:
        held += piece
        while len(held) >= CHUNK + OVERLAP:
            yield line, held[:CHUNK], False
            line += held.count("\n", 0, CHUNK - OVERLAP)
            held = held[CHUNK - OVERLAP :]
    yield line, held, True


def plain(text: str) -> str:
    """Without escape sequences, drawn frames and parameters of tests; lines stay lines."""
    if any(start in text for start in ("\x1b", "^[[", "\u241b[")):
        text = _ESCAPES.sub("", text)
    text = _PARAMETERS.sub(r"\1", _COLOURS.sub("", text))
    return text if text.isascii() else text.translate(_LOOKS)


def collapsed(text: str) -> str:
    """Every run of white space, line breaks included, as one blank."""
    return " ".join(text.split())


def rejoined(text: str) -> str:
    """Lines of 40 characters and more joined to the next without a blank, then collapsed.

    A window or PowerShell's error records break words in the middle.
    """
    return collapsed(_HARD_BREAK.sub("", text.replace("\r\n", "\n")))


def locate(text: str, before: int) -> tuple[int, str]:
    """(lines above, the line) of the place in plain ``text`` after ``before`` visible characters.

    Counting visible characters works for :func:`collapsed` and :func:`rejoined` alike.
    """
    lines = text.split("\n")
    for number, line in enumerate(lines):
        before -= len("".join(line.split()))
        if before < 0:
            return number, line.strip()
    return max(len(lines) - 1, 0), lines[-1].strip()
