"""A text in pieces: nothing is lost, nothing is cut that belongs together, no piece is too long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stentor.engines.speaking.sentences import Pace, count_letters, split_sentences


def pieces(text: str, most: int = 400, first: int = 400) -> list[str]:
    return [piece.strip() for piece in split_sentences(text, Pace(first, most, most)) if piece.strip()]


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
    assert [len(piece) for piece in split_sentences("x" * 950, Pace(100, 4, 400))] == [100, 400, 317, 133]


def test_the_first_piece_is_short_so_that_it_is_there_soon() -> None:
    long = "This sentence has a beginning that goes on for quite a while, then a middle that adds more, " * 3
    first, *rest = split_sentences(long, Pace(120, 4, 400))
    assert len(first.rstrip()) <= 120
    assert max(map(len, rest)) > 120


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The small brown dog ran quickly over the old bridge this morning.",
         ["The small brown dog ran", "quickly over the old bridge this morning."]),
        ("He sent them twelve of the old books that he had written with his brother.",
         ["He sent them twelve", "of the old books that he had written", "with his brother."]),
        ("First, wash your hands thoroughly with soap.", ["First,", "wash your hands thoroughly with soap."]),
        ("Good morning. The train leaves at seven.", ["Good morning.", "The train leaves at seven."]),
        ("Turn the kitchen lights off now.", ["Turn the kitchen lights", "off now."]),
        ("わたしは あした ともだちと いっしょに たべます。", ["わたしは あした", "ともだちと いっしょに たべます。"]),
    ],
)  # fmt: skip
def test_the_first_pieces_are_phrases_that_grow(text: str, wanted: list[str]) -> None:
    """Each plays while the next is made; none ends with a word that belongs to what follows."""
    assert [piece.strip() for piece in split_sentences(text, Pace(24, 2))] == wanted


def test_sentences_that_fit_are_gathered_where_each_piece_costs_something() -> None:
    text = "I see. You do. He walked home. She stayed there for the night. They met again. It was late."
    assert list(split_sentences(text, Pace(16, 2, 64, gather=True))) == [
        "I see. You do. ", "He walked home. ", "She stayed there for the night. They met again. It was late.",
    ]  # fmt: skip


def test_what_takes_longer_to_say_than_a_letter_counts_more() -> None:
    assert [count_letters(text) for text in ("river", "かわ", "강", "河", "né")] == [5, 4, 2, 4, 2]


@given(
    st.text(max_size=600) | st.lists(st.sampled_from([*"aB1 .,!?\n。、", "Mr. ", "word "]), max_size=300).map("".join),
    st.booleans(),
)
def test_joined_they_are_the_text_and_none_is_too_long(text: str, gather: bool) -> None:
    made = list(split_sentences(text, Pace(20, 2, 50, gather)))
    assert "".join(made) == text
    assert all(count_letters(piece.rstrip()) <= most for piece, most in zip(made, [20, 40] + [50] * 600, strict=False))
    assert made or not text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ["!", "a.", "a. ", "a, ", "Dr. ", "\n", " ", "!)", "。", "؟", "\n ", ",", "x"])
@pytest.mark.parametrize("gather", [False, True])
def test_the_same_thing_over_and_over_takes_linear_time(part: str, gather: bool) -> None:
    text = part * 100_000
    assert "".join(split_sentences(text, Pace(gather=gather))) == text
