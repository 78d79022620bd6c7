"""The circuit breaker of an upstream, under a clock that the test holds."""

from hypothesis import given
from hypothesis import strategies as st

from stentor.runtime.circuit import Circuit, CircuitPolicy

POLICY = CircuitPolicy(failures=3, open_s=10.0, open_max_s=40.0, pause_max_s=100.0)


def tripped(now_s: float = 0.0) -> Circuit:
    circuit = Circuit(POLICY)
    for _ in range(POLICY.failures):
        circuit.fail(now_s)
    return circuit


def test_opens_after_failures_in_a_row_only() -> None:
    circuit = Circuit(POLICY)
    for _ in range(5):
        circuit.fail(0)
        circuit.fail(0)
        circuit.succeed()
    assert circuit.state(0) == "closed"
    assert tripped().state(0) == "open"


def test_open_refuses_until_its_pause_is_over_and_says_how_long() -> None:
    circuit = tripped(100.0)
    assert (circuit.allows(109.9), circuit.retry_s(104.0)) == (False, 6.0)
    assert (circuit.allows(110.0), circuit.state(110.0)) == (True, "half-open")


def test_half_open_lets_one_try_at_a_time() -> None:
    circuit = tripped()
    circuit.begin(10)
    assert not circuit.allows(10)
    circuit.forget()
    assert circuit.allows(10), "whose client left has tried nothing"
    circuit.begin(10)
    circuit.succeed()
    assert circuit.state(10) == "closed"
    assert circuit.allows(10)


def test_each_failed_trial_doubles_the_pause_up_to_the_most() -> None:
    circuit, now_s, pauses = tripped(), 10.0, []
    for _ in range(4):
        circuit.begin(now_s)
        circuit.fail(now_s)
        pauses.append(circuit.retry_s(now_s))
        now_s += pauses[-1]
    assert pauses == [20, 40, 40, 40]


def test_late_failures_of_requests_under_way_do_not_lengthen_the_pause() -> None:
    circuit = tripped()
    for _ in range(20):
        circuit.fail(5)
    assert circuit.retry_s(5) == 5


def test_retry_after_is_respected_in_every_state_and_bounded() -> None:
    circuit = Circuit(POLICY)
    circuit.pause(0, 30)
    assert (circuit.allows(29), circuit.allows(30), circuit.retry_s(10)) == (False, True, 20)
    circuit.succeed()
    assert not circuit.allows(29), "an answer to an earlier request takes nothing back"
    circuit.pause(0, 1_000_000)
    assert circuit.retry_s(0) == 100
    circuit.pause(0, -5)
    assert circuit.retry_s(0) == 100


def test_being_seen_alive_ends_the_wait_for_a_trial_but_closes_nothing() -> None:
    circuit = tripped()
    circuit.invite(1)
    assert circuit.state(1) == "half-open"
    closed = Circuit(POLICY)
    closed.invite(1)
    assert closed.state(1) == "closed"


@given(st.lists(st.tuples(st.sampled_from("bsfnpi"), st.floats(0, 50)), max_size=60))
def test_it_never_shuts_for_ever(steps: list[tuple[str, float]]) -> None:
    circuit, now_s = Circuit(POLICY), 0.0
    for step, wait_s in steps:
        now_s += wait_s
        if step == "b" and circuit.allows(now_s):
            circuit.begin(now_s)
        elif step == "s":
            circuit.succeed()
        elif step == "f":
            circuit.fail(now_s)
        elif step == "n":
            circuit.forget()
        elif step == "p":
            circuit.pause(now_s, wait_s)
        elif step == "i":
            circuit.invite(now_s)
    circuit.forget()
    later_s = now_s + circuit.retry_s(now_s)
    assert circuit.retry_s(now_s) <= POLICY.pause_max_s
    assert circuit.allows(later_s)
