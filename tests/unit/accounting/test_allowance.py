"""Admission and settlement: every rule, and what no order of events may ever break."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from stentor.accounting.accounts import KeyAccount, KeyTerms, ProjectAccount, UserAccount, UserTerms
from stentor.accounting.allowance import Demand, Hold, admit, give_back, settle, take_back
from stentor.accounting.meters import CalendarMeter, Meter, Moment
from stentor.accounting.price import Price, price_usage
from stentor.core.books import Usage
from stentor.core.errors import Refused
from stentor.core.ids import KeyId, ProjectId, TierId, UserId
from stentor.core.principal import Principal

NOW = Moment(1_800_000_000_000_000, 5000.0)
PRICE = Price(1, 1_000_000, 2_000_000)  # one nano-USD an input token, two an output token


def make_user(balance: int | None = None, **limits: int) -> UserAccount:
    terms = UserTerms(
        UserId("u"),
        TierId("t"),
        True,
        balance is not None,
        limits.get("requests"),
        limits.get("tokens"),
        limits.get("concurrency"),
    )
    return UserAccount(terms, Meter("insufficient_balance", "balance", "u", balance or 0, 0))


def make_key(
    user: UserAccount | None = None, budgets: dict[str, Meter] | None = None, pace: float = 0, **limits: int
) -> KeyAccount:
    principal = Principal(KeyId("k"), UserId("u"), ProjectId("p"), TierId("t"), frozenset({"inference"}))
    fields = ("token_limit", "spending", "requests", "tokens", "concurrency")
    terms = KeyTerms(principal, None, *(limits.get(field) for field in fields))
    project = ProjectAccount(ProjectId("p"), True, budgets or {})
    return KeyAccount(terms, user or make_user(), project, (0, 0), pace)


def want(
    prompt: int = 10, asked: int | None = 10, answers: int = 1, *, default: int = 100, context: int = 1000
) -> Demand:
    return Demand(prompt, asked, default, answers, context)


def later(seconds: float) -> Moment:
    return Moment(NOW.us + int(seconds * 1e6), NOW.steady_s + seconds)


def refusal(account: KeyAccount, demand: Demand, now: Moment = NOW) -> Refused:
    with pytest.raises(Refused) as caught:
        admit(account, demand, PRICE, now)
    return caught.value


# -- the output cap ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("demand", "output"),
    [
        (want(asked=10), 10),
        (want(asked=None), 100),
        (want(asked=5000), 999),
        (want(asked=None, default=5000), 999),
        (want(prompt=5000, asked=10), 10),  # the bound is an upper bound: whether it fits is the engine's to say
        (want(asked=0), 0),
    ],
)
def test_the_cap_is_what_was_asked_within_the_context(demand: Demand, output: int) -> None:
    assert admit(make_key(), demand, PRICE, NOW).output == output


def test_a_default_answer_is_cut_to_what_the_balance_affords() -> None:
    hold = admit(make_key(make_user(balance=50)), want(asked=None), PRICE, NOW)
    assert hold.output == 20  # 10 for the prompt, 2 a token
    assert hold.nano == 50


def test_an_asked_answer_that_is_too_dear_is_refused_with_the_affordable_number() -> None:
    refused = refusal(make_key(make_user(balance=50)), want(asked=21))
    assert refused.code == "insufficient_balance"
    assert refused.details["affordable_output_tokens"] == 20
    assert refused.details["left_nano"] == 50
    assert "20 output tokens" in refused.message
    assert refused.param == "max_tokens"


def test_sound_and_characters_are_reserved_and_settled() -> None:
    price = Price(1, 0, 0, audio_second_nano=2_000_000_000, character_nano=3_000_000_000)
    user = make_user(balance=50_000)
    key = make_key(user)
    hold = admit(key, Demand(4, 0, 100, 1, 1000, True, 4000, 10), price, NOW)
    assert (hold.nano, key.user.balance.free()) == (38_000, 12_000)
    settle(hold, 11_000, 4, NOW)
    assert user.balance.free() == 39_000


def test_a_text_that_is_too_dear_to_speak_is_refused_without_a_word_of_output_tokens() -> None:
    price = Price(1, 0, 0, character_nano=3_000_000_000)
    with pytest.raises(Refused) as caught:
        admit(make_key(make_user(balance=29_999)), Demand(4, 0, 100, 1, 1000, characters=10), price, NOW)
    assert caught.value.code == "insufficient_balance"
    assert "output token" not in caught.value.message
    assert "affordable_output_tokens" not in caught.value.details


def test_several_answers_share_what_is_affordable() -> None:
    assert refusal(make_key(make_user(balance=50)), want(asked=20, answers=4)).details["affordable_output_tokens"] == 5


def test_refuses_when_balance_is_empty() -> None:
    refused = refusal(make_key(make_user(balance=0)), want(asked=None))
    assert refused.code == "insufficient_balance"
    assert refused.details["affordable_output_tokens"] == 0


@pytest.mark.parametrize(
    ("account", "code"),
    [
        (lambda: make_key(make_user(balance=10**6), spending=50), "spending_limit"),
        (
            lambda: make_key(
                make_user(balance=10**6),
                {"day": CalendarMeter("budget_exceeded", "project_budget", "p", 50, "day", NOW.us)},
            ),
            "budget_exceeded",
        ),
        (lambda: make_key(make_user(balance=50), spending=51), "insufficient_balance"),
    ],
)
def test_the_tightest_purse_is_named(account, code: str) -> None:
    refused = refusal(account(), want(asked=500))
    assert (refused.code, refused.details["affordable_output_tokens"]) == (code, 20)
    assert ("resets_at" in refused.details) == (code == "budget_exceeded")
    if code != "insufficient_balance":
        assert "of $0.000000050 left" in refused.message
    assert ("00:00 UTC" in refused.message) == (code == "budget_exceeded")


def test_a_tier_without_balance_pays_nothing() -> None:
    hold = admit(make_key(), want(asked=500), PRICE, NOW)
    charge = settle(hold, 123, 20, NOW)
    assert (charge.cost_nano, charge.balance_nano, charge.absorbed_nano, charge.posts) == (123, 0, 0, ())


# -- token limits ------------------------------------------------------------------------------------------------------


def test_a_token_limit_is_for_good() -> None:
    account = make_key(token_limit=30)
    settle(admit(account, want(prompt=10, asked=10), PRICE, NOW), 0, 15, NOW)
    refused = refusal(account, want(prompt=10, asked=10), later(10_000))
    assert refused.code == "quota_exceeded"
    assert refused.retry_after_s is None
    assert (refused.details["limit"], refused.details["left"]) == (30, 15)
    assert refused.details["affordable_output_tokens"] == 5
    assert admit(account, want(prompt=10, asked=None), PRICE, NOW).output == 5


def test_tokens_per_minute_hold_the_worst_case_and_count_the_real_one() -> None:
    account = make_key(make_user(tokens=100))
    first = admit(account, want(prompt=40, asked=40), PRICE, NOW)
    assert refusal(account, want(prompt=10, asked=11)).code == "rate_limit_exceeded"
    settle(first, 0, 30, NOW)
    second = admit(account, want(prompt=10, asked=60), PRICE, later(1))
    settle(second, 0, 70, later(1))
    refused = refusal(account, want(prompt=1, asked=1), later(2))
    assert refused.details["rule"] == "tokens_per_minute"
    assert refused.retry_after_s == 59
    assert refused.details["resets_at"] == NOW.us // 1_000_000 + 2 + 59
    admit(account, want(prompt=10, asked=20), PRICE, later(61))


def test_a_request_larger_than_a_whole_minute_is_refused_for_good_or_cut() -> None:
    account = make_key(make_user(tokens=50))
    refused = refusal(account, want(prompt=10, asked=41))
    assert refused.retry_after_s is None
    assert refused.details["affordable_output_tokens"] == 40
    assert admit(account, want(prompt=10, asked=None), PRICE, NOW).output == 40


# -- rates -------------------------------------------------------------------------------------------------------------


def test_requests_per_minute_name_limit_rest_and_reset() -> None:
    account = make_key(make_user(requests=2))
    for _ in range(2):
        settle(admit(account, want(), PRICE, NOW), 0, 0, NOW)
    refused = refusal(account, want(), later(10))
    assert refused.code == "rate_limit_exceeded"
    assert refused.retry_after_s == 51
    assert refused.details == {
        "rule": "requests_per_minute",
        "unit": "requests",
        "limit": 2,
        "left": 0,
        "resets_at": NOW.us // 1_000_000 + 61,
    }
    admit(account, want(), PRICE, later(61))


def test_a_second_attempt_is_the_same_request() -> None:
    account = make_key(make_user(requests=1))
    settle(admit(account, want(), PRICE, NOW), 0, 0, NOW)
    admit(account, want()._replace(counted=False), PRICE, NOW)


def test_a_keys_own_limit_narrows_the_users() -> None:
    user = make_user(requests=10)
    narrow, wide = make_key(user, requests=1), make_key(user)
    admit(narrow, want(), PRICE, NOW)
    assert refusal(narrow, want()).details["limit"] == 1
    for _ in range(9):
        admit(wide, want(), PRICE, NOW)
    assert refusal(wide, want()).details["limit"] == 10


def test_concurrency_counts_over_all_keys_of_a_user() -> None:
    user = make_user(concurrency=2)
    first, second = make_key(user), make_key(user)
    hold = admit(first, want(), PRICE, NOW)
    admit(second, want(), PRICE, NOW)
    refused = refusal(first, want())
    assert (refused.code, refused.details["rule"], refused.retry_after_s) == ("rate_limit_exceeded", "concurrency", 1.0)
    settle(hold, 0, 0, NOW)
    admit(first, want(), PRICE, NOW)


def test_a_request_that_never_ran_doesnt_slow_the_next_one() -> None:
    account = make_key(pace=1.0)
    for _ in range(3):
        give_back(admit(account, want(), PRICE, NOW))
    admit(account, want(), PRICE, NOW)
    assert refusal(account, want()).details["rule"] == "requests_per_second"


def test_what_no_minute_can_hold_says_what_is_left_and_no_time() -> None:
    account = make_key(tokens=900)
    settle(admit(account, want(), PRICE, NOW), 0, 300, NOW)
    never = refusal(account, want(asked=980))
    assert (never.code, never.retry_after_s) == ("rate_limit_exceeded", None)
    assert (never.details["left"], never.details["limit"], never.details["wanted"]) == (600, 900, 990)


def test_a_pace_spreads_requests() -> None:
    account = make_key(pace=2.0)
    for _ in range(2):
        admit(account, want(), PRICE, NOW)
    refused = refusal(account, want())
    assert refused.details["rule"] == "requests_per_second"
    assert refused.retry_after_s == pytest.approx(0.5)
    admit(account, want(), PRICE, later(0.5))


# -- giving back -------------------------------------------------------------------------------------------------------


def state(account: KeyAccount) -> object:
    meters = (*account.money, *((account.quota,) if account.quota else ()))
    return (
        [(meter.used, meter.held) for meter in meters],
        [(window.total, window.held) for window in (*account.token_windows, *account.request_windows)],
        (account.gauge.running, account.user.gauge.running),
    )


def full_key() -> KeyAccount:
    budgets: dict[str, Meter] = {"none": Meter("budget_exceeded", "project_budget", "p", 10**6, 0)}
    user = make_user(balance=10**6, requests=50, tokens=10**5, concurrency=9)
    return make_key(user, budgets, token_limit=10**5, spending=10**5, requests=40, tokens=10**5, concurrency=5)


def test_a_refused_place_leaves_nothing_behind() -> None:
    account = full_key()
    before = state(account)
    give_back(admit(account, want(), PRICE, NOW))
    assert state(account) == before


@pytest.mark.parametrize("demand", [want(prompt=10**4, asked=99, context=10**6), want(asked=90_000, context=10**6)])
def test_a_refusal_reserves_nothing(demand: Demand) -> None:
    account = full_key()
    assert account.user.tokens is not None
    account.user.tokens.held = 10**5 - 50
    before = state(account)
    refusal(account, demand)
    assert state(account) == before


def test_a_settlement_that_could_not_be_written_was_never_charged() -> None:
    account = full_key()
    settle(admit(account, want(), PRICE, NOW), 25, 18, NOW)
    before = state(account)
    take_back(settle(admit(account, want()._replace(counted=False), PRICE, NOW), 30, 20, NOW))
    assert state(account) == before


def test_what_a_budget_took_back_after_midnight_stays_yesterdays() -> None:
    meter = CalendarMeter("budget_exceeded", "project_budget", "p", 1000, "day", NOW.us)
    account = make_key(budgets={"day": meter})
    charge = settle(admit(account, want(), PRICE, NOW), 30, 0, NOW)
    tomorrow = later(86_400)
    settle(admit(account, want(), PRICE, tomorrow), 7, 0, tomorrow)
    take_back(charge)
    assert meter.used == 7


def test_use_beyond_the_reservation_is_absorbed_where_money_ends() -> None:
    account = make_key(make_user(balance=50))
    hold = admit(account, want(prompt=10, asked=10), PRICE, NOW)
    charge = settle(hold, 70, 60, NOW)
    assert (charge.cost_nano, charge.absorbed_nano, account.user.balance.left()) == (50, 20, 0)


# -- whatever happens --------------------------------------------------------------------------------------------------


class Allowances(RuleBasedStateMachine):
    """Requests of two keys of one user come, run, end, fail to be written, in any order."""

    holds = Bundle("holds")
    charges = Bundle("charges")

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.user = make_user(balance=3000, requests=8, tokens=600, concurrency=4)
        budgets: dict[str, Meter] = {"day": CalendarMeter("budget_exceeded", "project_budget", "p", 900, "day", NOW.us)}
        self.keys = [make_key(self.user, budgets, token_limit=700, spending=800), make_key(self.user, requests=3)]
        self.starts: list[float] = []
        self.paid = 3000
        self.charged = 0

    @rule(target=holds, key=st.integers(0, 1), prompt=st.integers(0, 400), asked=st.none() | st.integers(0, 400),
          answers=st.integers(1, 3))  # fmt: skip
    def open(self, key: int, prompt: int, asked: int | None, answers: int) -> Hold | None:
        try:
            hold = admit(self.keys[key], Demand(prompt, asked, 50, answers, 500), PRICE, self.now)
        except Refused:
            return None
        self.starts.append(self.now.steady_s)
        return hold

    @rule(target=charges, hold=consumes(holds), prompt=st.integers(0, 500), output=st.integers(0, 1500))
    def close(self, hold: Hold | None, prompt: int, output: int) -> object:
        if hold is None:
            return None
        usage = Usage(prompt, 0, output)
        charge = settle(hold, price_usage(PRICE, usage), min(prompt + output, hold.tokens), self.now)
        self.charged += charge.balance_nano
        return charge

    @rule(hold=consumes(holds))
    def never_served(self, hold: Hold | None) -> None:
        if hold is not None:
            give_back(hold)
            self.starts.remove(hold.admitted_s)

    @rule(charge=consumes(charges))
    def could_not_be_written(self, charge) -> None:
        if charge is not None:
            take_back(charge)
            self.charged -= charge.balance_nano

    @rule(seconds=st.sampled_from([0, 1, 7, 30, 61, 40_000]))
    def time_passes(self, seconds: int) -> None:
        self.now = Moment(self.now.us + seconds * 1_000_000, self.now.steady_s + seconds)

    @rule(amount=st.integers(1, 500))
    def top_up(self, amount: int) -> None:
        self.user.balance.limit += amount
        self.paid += amount

    @invariant()
    def nothing_is_ever_overdrawn(self) -> None:
        for key in self.keys:
            for meter in (*key.money, *((key.quota,) if key.quota else ())):
                assert meter.used >= 0
                assert meter.held >= 0
                assert meter.left() >= 0, (meter.kind, meter.limit, meter.used, meter.held)
        assert self.user.balance.used == self.charged <= self.paid

    @invariant()
    def no_minute_sees_more_requests_than_allowed(self) -> None:
        recent = [start for start in self.starts if self.now.steady_s - start <= 60]
        assert len(recent) <= 8
        assert 0 <= self.user.gauge.running <= 4
        assert self.user.tokens is not None
        assert self.user.tokens.left(int(self.now.steady_s)) >= 0


Allowances.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAllowances = Allowances.TestCase


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900)), max_size=30), st.integers(0, 3000))
def test_a_balance_never_goes_below_zero(uses: list[tuple[int, int]], balance: int) -> None:
    account = make_key(make_user(balance=balance))
    holds = []
    for prompt, _ in uses:
        try:
            holds.append(admit(account, want(prompt=prompt, asked=None), PRICE, NOW))
        except Refused:
            break
    for hold, (_, cost) in zip(holds, uses, strict=False):
        settle(hold, cost, 0, NOW)
        assert account.user.balance.left() >= 0
    assert account.user.balance.used <= balance
