"""A text in pieces: nothing is lost, nothing is cut that belongs together, no piece is too long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stentor.engines.speaking.sentences import split_sentences


def pieces(text: str, most: int = 400, first: int = 400) -> list[str]:
    return [piece.strip() for piece in split_sentences(text, most, first) if piece.strip()]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith met Mrs. Jones at 5 p.m. on Main St. near the U.S. embassy. They talked.",
         ["Dr. Smith met Mrs. Jones at 5 p.m. on Main St. near the U.S. embassy.", "They talked."]),
        ("It costs 3.50 dollars. Version 1.2.3 is out.", ["It costs 3.50 dollars.", "Version 1.2.3 is out."]),
        ("J. R. R. Tolkien wrote it. So did I. Really.", ["J. R. R. Tolkien wrote it.", "So did I.", "Really."]),
        ("Er kommt z.B. am Montag, d.h. bald. Gut.", ["Er kommt z.B. am Montag, d.h. bald.", "Gut."]),
        ('He said "Stop!" Then he left.', ['He said "Stop!"', "Then he left."]),
        ("Wait... what? Yes.", ["Wait... what?", "Yes."]),
        ("今日は。元気ですか？はい！", ["今日は。", "元気ですか？", "はい！"]),
        ("他说：「好。」然后走了。", ["他说：「好。」", "然后走了。"]),
        ("1. First item\n2. Second item", ["1. First item", "2. Second item"]),
        ("A heading\n\nThen a paragraph. And more.", ["A heading", "Then a paragraph.", "And more."]),
        ("نعم؟ لا۔ حسنا.", ["نعم؟", "لا۔", "حسنا."]),
    ],
)  # fmt: skip
def test_sentences_end_where_people_end_them(text: str, wanted: list[str]) -> None:
    assert pieces(text) == wanted


def test_a_long_sentence_is_cut_at_commas_then_at_words() -> None:
    clause = "and the river went on through the valley, "
    assert all(piece.endswith(",") for piece in pieces(clause * 30, 400)[:-1])
    words = pieces("word " * 300, 100)
    assert all(set(piece.split()) == {"word"} and len(piece) <= 100 for piece in words)


def test_a_word_without_end_is_cut_at_last() -> None:
    assert [len(piece) for piece in split_sentences("x" * 950, 400, 100)] == [100, 400, 400, 50]


def test_the_first_piece_is_short_so_that_it_is_there_soon() -> None:
    long = "This sentence has a beginning that goes on for quite a while, then a middle that adds more, " * 3
    first, *rest = split_sentences(long, 400, 120)
    assert len(first.rstrip()) <= 120
    assert max(map(len, rest)) > 120


@given(
    st.text(max_size=600) | st.lists(st.sampled_from([*"aB1 .,!?\n。、", "Mr. ", "word "]), max_size=300).map("".join)
)
def test_joined_they_are_the_text_and_none_is_too_long(text: str) -> None:
    made = list(split_sentences(text, 50, 20))
    assert "".join(made) == text
    assert all(len(piece.rstrip()) <= 50 for piece in made)
    assert len(made[0].rstrip()) <= 20 if made else not text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ["!", "a.", "a. ", "a, ", "Dr. ", "\n", " ", "!)", "。", "؟", "\n ", ",", "x"])
def test_the_same_thing_over_and_over_takes_linear_time(part: str) -> None:
    text = part * 100_000
    assert "".join(split_sentences(text)) == text
