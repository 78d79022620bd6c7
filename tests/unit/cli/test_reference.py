"""The reference pages say what the code does, and nothing in it goes undescribed."""

from pathlib import Path

import click
import pytest

from stentor.cli.reference import PAGES, cell, list_stale, main
from stentor.cli.root import root
from stentor.http.errors import CODES
from stentor.http.surface import SURFACE
from stentor.settings.declared import DECLARED
from stentor.telemetry.metrics import METRICS

FOLDER = Path(__file__).parents[3] / "docs" / "reference"


def read(name):
    return (FOLDER / name).read_text("utf-8")


def commands(group=root, path=("stentor",)):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_the_pages_are_up_to_date():
    assert list_stale(FOLDER) == [], "run `make docs`"


@pytest.mark.parametrize("setting", DECLARED, ids=lambda setting: setting.name)
def test_every_setting_is_described(setting):
    assert setting.text.strip()
    line = next(line for line in read("settings.md").splitlines() if line.startswith(f"| `{setting.name}`"))
    assert cell(setting.text) in line
    assert all(f"`{alias}`" in line for alias in (*setting.aliases, *setting.common_aliases))


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_and_option_is_described(path, command):
    assert f"## {' '.join(path)}\n" in read("cli.md")
    assert command.help
    assert not [option.name for option in command.params if isinstance(option, click.Option) and not option.help]


@pytest.mark.parametrize("route", SURFACE, ids=lambda route: f"{route.method}{route.path}")
def test_every_route_is_described(route):
    assert route.summary
    assert f"| `{route.method}` | `{route.path}` |" in read("routes.md")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_is_described(metric):
    assert metric.help
    assert f"| `{metric.name}` |" in read("metrics.md")


@pytest.mark.parametrize("code", CODES)
def test_every_error_is_described(code):
    assert f"| `{code}` |" in read("errors.md")


def test_the_pages_show_no_secret_default():
    for setting in DECLARED:
        assert not (setting.secret and setting.default)


def test_check_notices_a_page_that_differs(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    assert main(["--check", str(tmp_path)]) == 0
    (tmp_path / "cli.md").write_text("old")
    (tmp_path / "errors.md").unlink()
    assert main(["--check", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "cli.md is out of date" in said
    assert "errors.md is out of date" in said
    assert main([]) == 2
    assert set(PAGES) == {"settings.md", "cli.md", "routes.md", "metrics.md", "errors.md"}
