"""A text in pieces that can be spoken one after the other: sentences, and parts of sentences that are too long.

Pure. The pieces joined are the text, so that what was spoken can be counted in characters of it.
"""

import re
from collections.abc import Iterator

PIECE_MAX_CHARS = 400
FIRST_MAX_CHARS = 120

# What may close a sentence behind its mark: quotes and brackets belong to it.
_CLOSERS = "\"'”’»›)]}」』）】》"
_WIDE_MARKS = "。！？｡…‥"
# Each run of marks is looked at once, from its first: a text of nothing but marks takes linear time.
_BREAK = re.compile(
    rf"(?:(?<![.!?…])[.!?…]++[{re.escape(_CLOSERS)}]*+(?=\s)|[{_WIDE_MARKS}]++[{re.escape(_CLOSERS)}]*+"
    r"|(?<![।؟۔։])[।؟۔։]++(?=\s|$)|\n[ \t]*+\n|\n)\s*+"
)
# Words that end in a full stop without ending a sentence, in the languages that voices mostly speak.
_ABBREVIATIONS = frozenset(
    {
        "mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "mt", "vs", "etc", "inc", "ltd", "co", "corp", "no",
        "nos", "vol", "fig", "figs", "approx", "dept", "est", "gen", "col", "lt", "sgt", "capt", "rev", "hon",
        "e.g", "i.e", "a.m", "p.m", "u.s", "u.k", "u.n", "ph.d", "cf", "ca", "al", "bzw", "usw", "ggf", "z.b",
        "d.h", "u.a", "s.o", "s.u", "nr", "str", "hr", "fr", "dipl", "ing", "evtl", "inkl", "max", "min", "bspw",
        "m", "mme", "mlle", "av", "bd", "p.ex", "c.-à-d", "sra", "srta", "ud", "uds", "ee.uu", "pág", "núm", "dott",
        "sig", "sig.ra", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec", "mon",
        "tue", "wed", "thu", "fri", "sat", "sun",
    }
)  # fmt: skip
_CLAUSE = re.compile(r"[,;:،、，；：—–](?:\s+|(?<=[、，；：]))")
_LOOK_BACK = 40  # characters before a full stop that say what it means
_SPACE = re.compile(r"\s+")
# The next word begins small: then the full stop ended an abbreviation, not a sentence.
_GOES_ON = re.compile(r"\s*[a-zäöüßàâçéèêëîïôûùñ]")


def split_sentences(text: str, most: int = PIECE_MAX_CHARS, first: int = FIRST_MAX_CHARS) -> Iterator[str]:
    """The pieces of ``text`` in order, each at most ``most`` characters and never cut inside a word that fits.

    The first is at most ``first``, so that its sound is there soon. Joined they are the text; none is blank unless all
    of it is.
    """
    limit = min(first, most)
    held = ""
    for sentence in _sentences(text):
        held += sentence
        if not held.strip():
            continue
        while len(held.rstrip()) > limit:
            cut = _find_cut(held, limit)
            yield held[:cut]
            held = held[cut:]
            limit = most
        if held.strip():
            yield held
            held = ""
            limit = most
    if held:
        yield held


def _sentences(text: str) -> Iterator[str]:
    begin = 0
    for mark in _BREAK.finditer(text):
        if mark.end() < len(text) and _is_inside(text, begin, mark):
            continue
        yield text[begin : mark.end()]
        begin = mark.end()
    if begin < len(text):
        yield text[begin:]


def _is_inside(text: str, begin: int, mark: re.Match[str]) -> bool:
    """Whether the sentence goes on behind this mark: an abbreviation, an initial, a numbered item."""
    said = mark[0].strip()
    if said.strip(".…") or not said or "\n" in mark[0]:
        return False
    if said != ".":
        return bool(_GOES_ON.match(text, mark.end() - 1))
    before = text[max(begin, mark.start() - _LOOK_BACK) : mark.start()].rsplit("\n", 1)[-1].split()
    word = before[-1].lstrip("(\"'“‘«[").lower() if before else ""
    if word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word != "i"):
        return True
    if word.isdigit() and len(word) <= 2 and len(before) == 1:
        return True  # "1. First item"
    return bool(_GOES_ON.match(text, mark.end() - 1))


def _find_cut(text: str, limit: int) -> int:
    """Where to cut a piece that is longer than ``limit``: behind a clause, else behind a word, else at the limit."""
    best = 0
    for mark in _CLAUSE.finditer(text, 0, limit + 1):
        if mark.end() <= limit:
            best = mark.end()
    if best > limit // 4:
        return best
    for mark in _SPACE.finditer(text, 0, limit + 1):
        if mark.start() > 0 and mark.end() <= limit:
            best = mark.end()
    return best or limit
