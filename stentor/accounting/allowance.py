"""Admission and settlement in memory: hold the worst case, replace it by what was used, or give it back.

The accounts belong to one event loop; each function here runs without an await, so a request is admitted against all
its limits at once or not at all.
"""

from collections.abc import Callable
from typing import NamedTuple

from stentor.accounting import refusals
from stentor.accounting.accounts import KeyAccount
from stentor.accounting.meters import Meter, Minute, Moment
from stentor.accounting.price import Bounds, Price, bound_tokens, price_bounds


class Demand(NamedTuple):
    """What a request wants. ``prompt`` is an upper bound in tokens; ``asked`` None: ``default`` output tokens or less.

    ``counted``: whether it counts as a request (a second attempt of the same request doesn't). ``audio_ms`` and
    ``characters`` are the most of sound and text that are heard and spoken.
    """

    prompt: int
    asked: int | None
    default: int
    answers: int
    context: int
    counted: bool = True
    audio_ms: int = 0
    characters: int = 0


class Hold:
    """What one running request has reserved."""

    __slots__ = ("account", "admitted_s", "counted", "money", "nano", "output", "quota", "token_windows", "tokens")

    def __init__(self, account: KeyAccount, output: int, tokens: int, nano: int, counted: bool) -> None:
        self.account = account
        self.output = output
        self.tokens = tokens
        self.nano = nano
        self.counted = counted
        self.admitted_s = 0
        self.money = account.money
        self.quota = account.quota
        self.token_windows = account.token_windows


class Charge:
    """What one settled request was charged, and where: enough to write it down, and to take it back."""

    __slots__ = (
        "absorbed_nano",
        "balance_nano",
        "cost_nano",
        "posts",
        "settled_s",
        "settled_us",
        "token_windows",
        "tokens",
    )

    def __init__(self, cost_nano: int, absorbed_nano: int, tokens: int, settled_s: int) -> None:
        self.cost_nano = cost_nano
        self.absorbed_nano = absorbed_nano
        self.balance_nano = 0
        self.tokens = tokens
        self.settled_s = settled_s
        self.settled_us = 0
        self.posts: tuple[tuple[Meter, int, int], ...] = ()  # (meter, its window's start, amount)
        self.token_windows: tuple[Minute, ...] = ()


def admit(account: KeyAccount, demand: Demand, price: Price, now: Moment) -> Hold:
    """Reserve the worst case of ``demand``. Raises Refused naming the rule, and then nothing is reserved."""
    second = int(now.steady_s)
    _check_rates(account, demand, now, second)
    output, bounds = _plan_output(account, demand, now)
    nano = 0
    if account.money:
        output, bounds, nano = _afford(account, demand, bounds, price, now.us)
    tokens = bound_tokens(bounds)
    hold = Hold(account, output, tokens, nano, demand.counted)
    hold.admitted_s = second
    _take(hold, now)
    return hold


def _check_rates(account: KeyAccount, demand: Demand, now: Moment, second: int) -> None:
    for gauge in (account.user.gauge, account.gauge):
        if gauge.limit is not None and gauge.is_full():
            raise refusals.too_parallel(gauge.limit)
    if not demand.counted:
        return
    for window in account.request_windows:
        if window.left(second) < 1:
            raise refusals.too_fast(window, 1, now, second)
    if account.pace is not None:
        wait_s = account.pace.wait_s(now.steady_s)
        if wait_s > 0:
            raise refusals.too_soon(account.pace, wait_s, now)


def _plan_output(account: KeyAccount, demand: Demand, now: Moment) -> tuple[int, Bounds]:
    """The output cap within the context and all token limits. An answer that was asked for isn't cut, but refused."""
    prompt = min(demand.prompt, demand.context)
    asked = demand.default if demand.asked is None else demand.asked
    output = min(asked, demand.context - 1)
    bounds = Bounds(prompt, output, demand.answers, demand.context, demand.audio_ms, demand.characters)
    quota = account.quota
    if quota is not None and quota.left() < bound_tokens(bounds):
        output = _fit_tokens(bounds, quota.left())
        if output < 1 or demand.asked is not None:
            raise refusals.over_quota(quota, bound_tokens(bounds), _fit_tokens(bounds, quota.free()))
        bounds = _cut(bounds, output)
    second = int(now.steady_s)
    for window in account.token_windows:
        if window.left(second) >= bound_tokens(bounds):
            continue
        # Waiting helps, unless the request could never fit: then the answer is cut, or refused if it was asked for.
        if bound_tokens(bounds) > window.limit:
            output = _fit_tokens(bounds, window.limit)
            if output < 1 or demand.asked is not None:
                raise refusals.never_fits(window, bound_tokens(bounds), output, window.free(second))
            bounds = _cut(bounds, output)
        if window.left(second) < bound_tokens(bounds):
            raise refusals.too_many_tokens(window, bound_tokens(bounds), now, second)
    return output, bounds


def _afford(account: KeyAccount, demand: Demand, bounds: Bounds, price: Price, now_us: int) -> tuple[int, Bounds, int]:
    """The output cap that every balance, limit and budget can pay for, and what it costs at most."""
    tightest: Meter | None = None
    left = 0
    for meter in account.money:
        if meter.window_end is not None:
            meter.turn(now_us)
        free = meter.left()
        if tightest is None or free < left:
            tightest, left = meter, free
    nano = price_bounds(price, bounds)
    if tightest is None or nano <= left:
        return bounds.output, bounds, nano
    output = _fit_money(price, bounds, left)
    if output < 1 or demand.asked is not None:
        tightest = min(account.money, key=Meter.free)
        affordable = max(_fit_money(price, bounds, tightest.free()), 0) if bounds.output else None
        raise refusals.unaffordable(tightest, nano, affordable)
    fitted = _cut(bounds, output)
    return output, fitted, price_bounds(price, fitted)


def _cut(bounds: Bounds, output: int) -> Bounds:
    return Bounds(bounds.prompt, output, bounds.answers, bounds.context, bounds.audio_ms, bounds.characters)


def _fit_tokens(bounds: Bounds, left: int) -> int:
    """The largest output cap whose worst case stays within ``left`` tokens; below 1 if there is none."""
    return _largest(bounds, lambda fitted: bound_tokens(fitted) <= left)


def _fit_money(price: Price, bounds: Bounds, left: int) -> int:
    """The largest output cap whose worst case costs at most ``left``; -1 if even the prompt alone costs more."""
    return _largest(bounds, lambda fitted: price_bounds(price, fitted) <= left)


def _largest(bounds: Bounds, fits: Callable[[Bounds], bool]) -> int:
    low, high = -1, bounds.output
    while low < high:
        middle = (low + high + 1) // 2
        if fits(_cut(bounds, middle)):
            low = middle
        else:
            high = middle - 1
    return low


def _take(hold: Hold, now: Moment) -> None:
    account = hold.account
    if hold.counted:
        for window in account.request_windows:
            window.add(hold.admitted_s, 1)
        if account.pace is not None:
            account.pace.pass_one(now.steady_s)
    _reserve(hold)


def _reserve(hold: Hold) -> None:
    account = hold.account
    account.user.gauge.running += 1
    account.gauge.running += 1
    for window in hold.token_windows:
        window.held += hold.tokens
    if hold.quota is not None:
        hold.quota.held += hold.tokens
    for meter in hold.money:
        meter.held += hold.nano


def replace(hold: Hold, take: Callable[[], Hold]) -> Hold:
    """What ``take`` reserves in place of ``hold``, in one step. Where it raises, ``hold`` stands as it was."""
    _release(hold)
    try:
        fresh = take()
    except BaseException:
        _reserve(hold)
        raise
    fresh.counted, fresh.admitted_s = hold.counted, hold.admitted_s
    return fresh


def _release(hold: Hold) -> None:
    account = hold.account
    account.user.gauge.running -= 1
    account.gauge.running -= 1
    for window in hold.token_windows:
        window.held -= hold.tokens
    if hold.quota is not None:
        hold.quota.held -= hold.tokens
    for meter in hold.money:
        meter.held -= hold.nano


def give_back(hold: Hold) -> None:
    """Undo an admission whose request was never served: not even counted as a request."""
    _release(hold)
    if hold.counted:
        for window in hold.account.request_windows:
            window.take_back(hold.admitted_s, 1)
        if hold.account.pace is not None:
            hold.account.pace.take_back()


def settle(hold: Hold, cost_nano: int, tokens: int, now: Moment) -> Charge:
    """Replace the reservation by what was used.

    No balance, limit or budget is charged more than it has: what usage beyond the reservation costs more is absorbed.
    """
    _release(hold)
    account = hold.account
    charged = cost_nano
    for meter in account.money:
        if meter.window_end is not None:
            meter.turn(now.us)
        free = meter.left()
        if charged > free:
            charged = max(free, 0)
    charge = Charge(charged, cost_nano - charged, tokens, int(now.steady_s))
    charge.settled_us = now.us
    posts = []
    if charged:
        for meter in account.money:
            meter.spend(charged)
            posts.append((meter, meter.window_start, charged))
        if account.user.terms.prepaid:
            charge.balance_nano = charged
    if tokens:
        if account.quota is not None:
            account.quota.spend(tokens)
            posts.append((account.quota, 0, tokens))
        for window in account.token_windows:
            window.add(charge.settled_s, tokens)
        charge.token_windows = account.token_windows
    charge.posts = tuple(posts)
    return charge


def take_back(charge: Charge) -> None:
    """Undo a settlement that could not be written down: as if the request had never been charged."""
    for meter, window_start, amount in charge.posts:
        if meter.window_start == window_start:
            meter.spend(-amount)
    for window in charge.token_windows:
        window.take_back(charge.settled_s, charge.tokens)
