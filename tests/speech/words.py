"""What was said, as words to compare: lower case, no punctuation, single blanks."""

import jiwer

NORMAL = jiwer.Compose([jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.RemoveMultipleSpaces(), jiwer.Strip()])
_LISTS = jiwer.Compose([NORMAL, jiwer.ReduceToListOfListOfWords()])


def plain_words(text: str) -> list[str]:
    """Lower case, without punctuation."""
    return str(NORMAL(text)).split()


def error_rate(said: list[str], heard: list[str]) -> float:
    """Words that are wrong, missing or too many, by the words that were said."""
    return float(jiwer.wer(said, heard, reference_transform=_LISTS, hypothesis_transform=_LISTS))
