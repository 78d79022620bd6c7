"""What the pages say is so: links lead somewhere, commands and settings exist, samples can be read."""

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from stentor.cli.root import root
from stentor.http.surface import SURFACE
from stentor.settings.declared import DECLARED, LMSERV_MARKS, UNUSED_ALIASES
from stentor.settings.load import load_settings
from stentor.telemetry.metrics import METRICS
from tests.house.rules import ROOT

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docs/guide/*.md", "docs/decisions/*.md", "bench/*.md")
    for path in ROOT.glob(pattern)
)
# What isn't a setting of Stentor's, though it is written like one.
FOREIGN_NAMES = {
    *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
    *("OLLAMA_API_KEY", "OLLAMA_HOST", "OLLAMA_MODELS", "SSL_CERT_FILE", "CUDA_VISIBLE_DEVICES", "LLAMA_ARG"),
    *("OLLAMA_CONTEXT_LENGTH", "OLLAMA_KEEP_ALIVE", "OLLAMA_NUM_PARALLEL", "OLLAMA_ORIGINS"),
    *("LLMRING_API_KEY", "LLMRING_SERVER_URL", "SO_REUSEPORT", "KEY_ID"),
}
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
_NAME = re.compile(r"(?<![\w/:.-])(?:STENTOR_)?([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)(?![\w*{:.-])")
_ROUTE = re.compile(r"\b(GET|POST|PUT|PATCH|DELETE) (/[\w{}/.-]*)")
_OWN_ADDRESS = re.compile(r"(?:localhost|127\.0\.0\.1):4000(/[\w{}/.-]*)")
_BODY = re.compile(r"-d '(\{[^']*\})'")
_EXTRA = re.compile(r"stentor\[([\w,]+)\]")


@cache
def text_of(path: Path) -> str:
    return path.read_text("utf-8")


@cache
def package_text() -> str:
    """All code of the package."""
    return "\n".join(path.read_text("utf-8") for path in (ROOT / "stentor").rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose_of(path: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", text_of(path))


def blocks(language: str) -> list[tuple[str, str]]:
    """Every fenced block in ``language``, with a name for it."""
    return [
        (f"{name_of(page)}#{number}", body)
        for page in PAGES
        for number, (said, body) in enumerate(_FENCE.findall(text_of(page)), 1)
        if said == language
    ]


def each(pages: Iterable[Path], find: Callable[[str], Iterable[str]]) -> list[str]:
    """``page: what`` for everything that ``find`` finds in a page's text."""
    return [f"{name_of(page)}: {found}" for page in pages for found in find(text_of(page))]


# -- links and names


def test_links_lead_to_files() -> None:
    broken = [
        f"{name_of(page)}: {target}"
        for page in PAGES
        for target in _LINK.findall(prose_of(page))
        if not re.match(r"[a-z]+:", target) and not (page.parent / target.partition("#")[0]).exists()
    ]
    assert not broken


def test_every_page_of_the_guide_is_linked() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve() for page in PAGES for target in _LINK.findall(prose_of(page))
    }
    assert not {name_of(page) for page in ROOT.glob("docs/guide/*.md") if page.resolve() not in linked}


def test_settings_that_are_named_exist() -> None:
    known = {name for setting in DECLARED for name in (setting.name, *setting.aliases, *setting.common_aliases)}
    known |= FOREIGN_NAMES | set(LMSERV_MARKS) | set(UNUSED_ALIASES)

    def unknown(text: str) -> set[str]:
        said = [*_INLINE.findall(text), *(body for _, body in _FENCE.findall(text))]
        names = {name for part in said for name in _NAME.findall(part) if "_" in name} - known
        return {name for name in names if not re.match(r"I?Q\d_", name)}  # quantizations

    assert not each(PAGES, unknown)


def test_metrics_that_are_named_exist() -> None:
    known = {metric.name for metric in METRICS} | {
        f"{metric.name}_bucket" for metric in METRICS if metric.kind == "histogram"
    }
    assert not each(PAGES, lambda text: set(re.findall(r"(?<!\w)stentor_[a-z_]+[a-z]", text)) - known)


def test_extras_that_are_named_exist() -> None:
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert not each(PAGES, lambda text: {name for names in _EXTRA.findall(text) for name in names.split(",")} - known)


def test_targets_of_make_that_are_named_exist() -> None:
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert not each(PAGES, lambda text: set(re.findall(r"`make ([a-z]+)`", text)) - known)


def test_routes_that_are_named_exist() -> None:
    patterns = [(route.method, re.compile(re.sub(r"\{[^}]+\}", "[^/]+", route.path))) for route in SURFACE]

    def unknown(text: str) -> Iterator[str]:
        asked = [*_ROUTE.findall(text), *(("", path) for path in _OWN_ADDRESS.findall(text))]
        for method, path in asked:
            path = path.rstrip("./") or "/"
            if path in ("/v1", "/stentor"):  # the beginning of addresses, and a receiver of webhooks
                continue
            if not any(pattern.fullmatch(path) and method in ("", known) for known, pattern in patterns):
                yield f"{method} {path}"

    assert not each(PAGES, unknown)


def test_headers_that_are_named_exist() -> None:
    code = package_text().lower()
    named = re.compile(r"x-(?:stentor|client|request)-[a-z-]+", re.IGNORECASE)
    assert not each(PAGES, lambda text: {name for name in named.findall(text) if name.lower() not in code})


# -- samples


@pytest.mark.parametrize(("where", "sample"), blocks("toml"), ids=lambda value: value if "#" in value[:60] else "")
def test_a_sample_of_settings_is_one(where: str, sample: str, tmp_path: Path) -> None:
    file = tmp_path / "stentor.toml"
    file.write_text(sample)
    load_settings({"config": file}, {}, tmp_path)


def test_samples_of_python_can_be_compiled() -> None:
    samples = blocks("python")
    assert samples
    for where, sample in samples:
        compile(sample, where, "exec", dont_inherit=True)


def test_bodies_in_samples_are_json() -> None:
    bodies = [body for page in PAGES for body in _BODY.findall(text_of(page)) if "…" not in body]
    assert bodies
    for body in bodies:
        json.loads(body)


def command_lines(text: str) -> Iterator[str]:
    """What is typed in the blocks of a page, without prompts, comments and variables before it."""
    for language, body in _FENCE.findall(text):
        if language not in ("", "sh", "console"):
            continue
        for line in body.replace("\\\n", " ").splitlines():
            typed = re.sub(r"\s+#\s.*$", "", line).strip().removeprefix("$ ")
            typed = re.sub(r"^([A-Z_]+=\S+ +)+", "", typed).removeprefix(".venv/bin/")
            if typed.startswith("stentor "):
                yield typed


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that is meant, and the words behind its name. Raises KeyError."""
    command: click.Command = root
    words = words[1:]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.commands[words[0]]
        words = words[1:]
    return command, words


def find_fault(line: str, *, whole: bool) -> str | None:
    """What is wrong with a command line; of one that isn't ``whole`` arguments may be missing."""
    try:
        command, words = find_command(shlex.split(line))
    except KeyError as error:
        return f"no command {error}"
    context = click.Context(command, info_name="stentor")
    try:
        given, left, _ = command.make_parser(context).parse_args(words)
    except click.UsageError as error:
        return error.format_message()
    if left:
        return f"too much: {left}"
    wanted = [each for each in command.params if isinstance(each, click.Argument) and each.required]
    if whole and any(not isinstance(given.get(str(each.name)), (str, tuple, list)) for each in wanted):
        return "an argument is missing"
    if whole and isinstance(command, click.Group):
        return "a command of a group is missing"
    return None


def test_command_lines_in_samples_can_be_typed() -> None:
    lines = [(name_of(page), line) for page in PAGES for line in command_lines(text_of(page))]
    assert len(lines) > 20
    assert not [f"{page}: {line}: {fault}" for page, line in lines if (fault := find_fault(line, whole=True))]


def test_commands_that_are_named_exist() -> None:
    def wrong(text: str) -> Iterator[str]:
        for said in _INLINE.findall(_FENCE.sub("", text)):
            if not said.startswith("stentor ") or "…" in said:
                continue
            first = said.split()
            at = next((number for number, word in enumerate(first) if "|" in word), None)
            for word in first[at].split("|") if at is not None else [""]:
                line = said if at is None else " ".join([*first[:at], word, *first[at + 1 :]])
                fault = find_fault(line, whole=False)
                if fault:
                    yield f"{line}: {fault}"

    assert not each(PAGES, wrong)


@pytest.mark.parametrize(
    "line",
    [
        "stentor keys make",
        "stentor keys create --colour red",
        "stentor keys revoke",
        "stentor models",
        "stentor doctor x",
    ],
)
def test_a_wrong_command_line_is_found(line: str) -> None:
    assert find_fault(line, whole=True)


# -- the map


def test_what_the_map_names_exists() -> None:
    paths = [name_of(path) for folder in ("stentor", "tests") for path in ROOT.glob(f"{folder}/**/*.py")]
    code = set(re.findall(r"\w+", package_text()))
    unknown = []
    for said in _INLINE.findall(prose_of(ROOT / "ARCHITECTURE.md")):
        if re.fullmatch(r"[\w/]+\.py", said):
            found = any(f"/{path}".endswith(f"/{said}") for path in paths)
        elif re.fullmatch(r"[A-Z][a-z]+\w*(\.\w+)*", said):
            found = code.issuperset(said.split("."))
        elif re.fullmatch(r"(tests|stentor)/[\w/]*", said):
            found = (ROOT / said).exists()
        else:
            continue
        if not found:
            unknown.append(said)
    assert not unknown


def test_the_map_has_every_package() -> None:
    said = set(_INLINE.findall(text_of(ROOT / "ARCHITECTURE.md")))
    packages = {path.parent.name for path in (ROOT / "stentor").glob("*/__init__.py")}
    assert not packages - said
