"""Phonemes as Kokoro was taught to read them, from espeak-ng's. Pure.

Its Japanese was written in plain vowels, with one letter for each affricate and without stress: espeak-ng's «ä» it does
not know at all, and would leave out.
"""

# Marks of sentences that are wide where the script is.
_MARKS = str.maketrans("。！？、，；：｡", ".!?,,;:.")
_JAPANESE = (
    ("tɕ", "ʨ"), ("dʑ", "ʥ"), ("ts", "ʦ"), ("dz", "ʣ"), ("ä", "a"), ("ɽ", "ɾ"), ("ũ", "ɴ"), ("ĩ", "ɴ"),
    ("ᵝ", ""), ("\u031e", ""), ("ˈ", ""), ("ˌ", ""),
)  # fmt: skip


def plain_marks(text: str) -> str:
    """``text`` with its marks as the model knows them."""
    return text.translate(_MARKS)


def respell(phonemes: str, language: str) -> str:
    """espeak-ng's phonemes of a ``language`` (by its name for it) in the model's spelling."""
    if language == "ja":
        for theirs, ours in _JAPANESE:
            phonemes = phonemes.replace(theirs, ours)
    return phonemes
