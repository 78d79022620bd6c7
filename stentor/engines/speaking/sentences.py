"""A text in pieces that can be spoken one after the other: sentences, and parts of sentences that are too long.

Pure. The pieces joined are the text, so that what was spoken can be counted in characters of it. How long one is, is
counted in letters: what takes longer to say than a letter (a kana, a character of Chinese) counts as several.
"""

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple


class Pace(NamedTuple):
    """How long pieces are, in letters: the first, how much longer each may be than the one before it, and the most.

    A voice that takes half as long to make a sound as to play it is heard without gaps where each piece is at most
    twice as long as the one that plays meanwhile. ``gather``: sentences that fit make one piece, for a voice to which
    each piece costs something.
    """

    first: int = 120
    growth: float = 4.0
    most: int = 400
    gather: bool = False


PACE = Pace()

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
# Small words that belong to what follows: a text may be cut before them, and mustn't be behind them.
_LINK_WORDS = """
    a an the and or but nor so if of in on at to for with from by over under into onto through after before as than that
    which who whose when where while because although though until since about between during without within my your his
    her its our their this these those is are was were be been not no
    der die das den dem des ein eine einen einem einer und oder aber denn weil dass wenn als wie ob mit von zu zum zur
    bei aus nach vor im am an auf für über unter durch gegen ohne um bis nicht kein keine mein sein ihr unser
    le la les un une et ou mais donc que qui dont où de du dès à au aux en dans sur sous par pour avec sans chez ne
    el los las una y o pero porque si cuando del al con por para sin sobre entre desde hasta su mi
    il lo gli i e ed ma perché se quando di da nel nella su per tra fra non
    os as um uma mas do dos das em na nos nas com não
"""  # English, German, French, Spanish, Italian, Portuguese
_LINKS = frozenset(_LINK_WORDS.split())
# What takes as long to say as several letters: how many more than one.
_SLOW = ((re.compile("[\u3040-\u30ff\uac00-\ud7a3]"), 1), (re.compile("[\u3400-\u9fff\uf900-\ufaff]"), 3))
_LOOK_BACK = 40  # characters before a full stop that say what it means
_SPACE = re.compile(r"\s+")
_WORD, _WORD_BEFORE = re.compile(r"\w*"), re.compile(r"(\S*)\s*\Z")
# The next word begins small: then the full stop ended an abbreviation, not a sentence.
_GOES_ON = re.compile(r"\s*[a-zäöüßàâçéèêëîïôûùñ]")


def split_sentences(text: str, pace: Pace = PACE) -> Iterator[str]:
    """The pieces of ``text`` in order, none longer than ``pace`` allows and none cut inside a word that fits.

    Joined they are the text; none is blank unless all of it is.
    """
    limit = min(pace.first, pace.most)
    held = ""
    for sentence in _sentences(text):
        if pace.gather and held.strip() and _count_up_to((held + sentence).rstrip(), limit) > limit:
            yield held
            held = ""
            limit = min(pace.most, int(limit * pace.growth))
        held += sentence
        if not held.strip():
            continue
        while (length := _count_up_to(held.rstrip(), limit)) > limit:
            # What is left is a piece of its own, too.
            cut = _find_cut(held, _reach(held, max(limit * 2 // 3, min(limit, length - limit // 3))))
            yield held[:cut]
            held = held[cut:]
            limit = min(pace.most, int(limit * pace.growth))
        if held.strip() and not pace.gather:
            yield held
            held = ""
            limit = min(pace.most, int(limit * pace.growth))
    if held:
        yield held


def count_letters(text: str) -> int:
    """How long ``text`` is to say, in letters."""
    if text.isascii():
        return len(text)
    return len(text) + sum(more * len(kind.findall(text)) for kind, more in _SLOW)


def _count_up_to(text: str, letters: int) -> int:
    """How long ``text`` is; something near it where it is far longer than ``letters``."""
    return count_letters(text) if len(text) <= 2 * letters else len(text)


def _reach(text: str, letters: int) -> int:
    """How many characters of ``text`` are at most so many letters; at least one."""
    if text[:letters].isascii():
        return letters
    lengths = accumulate(count_letters(character) for character in text[:letters])
    return max(1, sum(1 for length in lengths if length <= letters))


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
    """Where to cut a piece that is longer than ``limit``: behind a clause, else where a phrase begins, else behind a
    word, else at the limit."""
    best = 0
    for mark in _CLAUSE.finditer(text, 0, limit + 1):
        if mark.end() <= limit:
            best = mark.end()
    if best > limit // 4:
        return best
    gaps = [gap.end() for gap in _SPACE.finditer(text, 0, limit + 1) if gap.start() > 0 and gap.end() <= limit]
    before = [at for at in gaps if _word_before(text, at) not in _LINKS]
    phrases = [at for at in before if at > limit // 2 and _word_at(text, at) in _LINKS]
    for found in (phrases, before, gaps):
        if found:
            return found[-1]
    return best or limit


def _word_before(text: str, at: int) -> str:
    found = _WORD_BEFORE.search(text, max(0, at - _LOOK_BACK), at)
    return found[1].lower() if found else ""


def _word_at(text: str, at: int) -> str:
    found = _WORD.match(text, at)
    return found[0].lower() if found else ""
