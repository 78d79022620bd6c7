"""What usage costs, and the most it can cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stentor.accounting.price import Bounds, Price, bound_tokens, price_bounds, price_usage
from stentor.accounting.prices import EVERY_LOCAL_MODEL, PriceList
from stentor.core.books import Usage
from stentor.core.errors import Refused
from stentor.core.ids import ModelId

LOCAL = Price(1, 100_000_000, 200_000_000)


def test_the_local_default_is_a_hundredth_of_a_cent_per_thousand() -> None:
    # 0.0001 USD per 1k input and 0.0002 per 1k output tokens
    assert price_usage(LOCAL, Usage(1000, 0, 0)) == 100_000
    assert price_usage(LOCAL, Usage(0, 0, 1000)) == 200_000
    assert price_usage(LOCAL, Usage(1234, 0, 567)) == 1234 * 100 + 567 * 200


def test_cached_input_is_part_of_input_and_has_its_own_price() -> None:
    price = Price(1, 3_000_000, 0, cached_nano=1_000_000)
    assert price_usage(price, Usage(input_tokens=10, cached_tokens=4)) == 6 * 3 + 4 * 1
    assert price_usage(Price(1, 3_000_000, 0), Usage(input_tokens=10, cached_tokens=4)) == 30


def test_reasoning_is_part_of_output() -> None:
    usage = Usage(output_tokens=10, reasoning_tokens=8)
    assert price_usage(LOCAL, usage) == price_usage(LOCAL, Usage(output_tokens=10))


def test_a_cost_is_rounded_up_once() -> None:
    third = Price(1, 333_333, 333_333)
    # 1/3 + 1/3 nano-USD is one nano, not two
    assert price_usage(third, Usage(1, 0, 1)) == 1
    assert price_usage(third, Usage(0, 0, 0)) == 0


def test_audio_characters_and_requests_add_up() -> None:
    price = Price(1, 0, 0, audio_second_nano=2_000_000, character_nano=5_000_000, request_nano=7_000_000)
    assert price_usage(price, Usage(audio_ms=1500, characters=3)) == 3 + 15 + 7


amounts = st.integers(0, 10**10)
prices = st.builds(Price, st.just(1), amounts, amounts, st.none() | amounts, amounts, amounts, amounts)


@st.composite
def usage_within_bounds(draw):
    context = draw(st.integers(2, 40_000))
    prompt = draw(st.integers(0, context))
    output = draw(st.integers(0, context - 1))
    answers = draw(st.integers(1, 4))
    used_prompt = draw(st.integers(0, prompt))
    each = [draw(st.integers(0, min(output, context - used_prompt))) for _ in range(answers)]
    audio_ms, characters = draw(st.integers(0, 10**7)), draw(st.integers(0, 10**5))
    usage = Usage(
        used_prompt,
        draw(st.integers(0, used_prompt)),
        sum(each),
        audio_ms=draw(st.integers(0, audio_ms)),
        characters=draw(st.integers(0, characters)),
    )
    return Bounds(prompt, output, answers, context, audio_ms, characters), usage


@given(prices, usage_within_bounds())
def test_no_usage_within_bounds_costs_or_counts_more_than_reserved(price, drawn) -> None:
    bounds, usage = drawn
    assert price_usage(price, usage) <= price_bounds(price, bounds)
    assert usage.input_tokens + usage.output_tokens <= bound_tokens(bounds)


@given(st.integers(0, 40_000), st.integers(0, 40_000), st.integers(2, 40_000))
def test_a_single_answer_never_reserves_more_than_the_context(prompt: int, output: int, context: int) -> None:
    assert bound_tokens(Bounds(min(prompt, context), min(output, context - 1), 1, context)) <= context


def test_a_price_holds_from_its_date_on() -> None:
    prices = PriceList([("m", 100, Price(2, 5, 5)), (EVERY_LOCAL_MODEL, 0, LOCAL), ("m", 200, Price(3, 9, 9))])
    model = ModelId("m")
    assert [prices.get_price(model, now).version for now in (0, 99, 100, 199, 200, 10**18)] == [1, 1, 2, 2, 3, 3]
    assert prices.get_price(ModelId("other"), 150).version == 1


def test_a_clock_that_leaps_and_is_set_right_leaves_the_price_that_holds() -> None:
    prices = PriceList([("m", 100, Price(2, 5, 5)), (EVERY_LOCAL_MODEL, 0, LOCAL), (EVERY_LOCAL_MODEL, 300, LOCAL)])
    for model, versions in (("m", [1, 2, 1, 2, 2, 1]), ("other", [1, 1, 1, 1, 1, 1])):
        asked = [prices.get_price(ModelId(model), now).version for now in (99, 10**18, 99, 100, 299, 0)]
        assert asked == versions


def test_an_unknown_price_is_refused_not_free() -> None:
    with pytest.raises(Refused, match="no price"):
        PriceList([("m", 100, LOCAL)]).get_price(ModelId("m"), 99)
