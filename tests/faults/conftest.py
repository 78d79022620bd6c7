"""Each test has surroundings of its own and leaves no process, port or stray file behind."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.subject import Subject, Surroundings
from tests.serving import scripted_model

MakeSubject = Callable[..., Subject]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Surroundings]:
    """The surroundings; checked at the end, after everything that a test started was ended."""
    surroundings = Surroundings(tmp_path)
    try:
        yield surroundings
        surroundings.check_empty()
    finally:
        for process in surroundings.processes():
            process.kill()


@pytest.fixture
def make_subject(place: Surroundings) -> Iterator[MakeSubject]:
    """Servers that don't run yet; those that do at the end are stopped."""
    made: list[Subject] = []

    def make(config: str | None = None, *arguments: str, **settings: Any) -> Subject:
        text = scripted_model() if config is None else config
        subject = Subject(place, text, "--admin-key", *arguments, **{name: str(v) for name, v in settings.items()})
        made.append(subject)
        return subject

    yield make
    for subject in made:
        if subject.process is not None:
            subject.stop()
