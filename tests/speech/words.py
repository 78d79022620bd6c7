"""What was said, as words to compare."""

import jiwer

NORMAL = jiwer.Compose([jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.RemoveMultipleSpaces(), jiwer.Strip()])


def plain_words(text: str) -> list[str]:
    """Lower case, without punctuation."""
    return str(NORMAL(text)).split()
