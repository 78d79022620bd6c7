"""The house rules that no linter knows, each a function from source to the places that break it.

A rule takes a :class:`Source` and yields ``line, what`` pairs; ``test_rules.py`` runs each over the package, and over a
small sample that must be caught.
"""

import ast
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from stentor.telemetry.logs import FIELDS

ROOT = Path(__file__).parents[2]
FILE_LINES = 400
FUNCTION_LINES = 50
_VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "base_utils"}
_SLOW_CLIENTS = {"requests", "httpx", "urllib3"}
_STATEMENT_MAKERS = {"select", "insert", "update", "delete", "text", "union", "union_all", "exists", "func"}
_SQL = re.compile(
    r"\s*(SELECT\s.+\sFROM\s|INSERT\s+(OR\s+\w+\s+)?INTO\s|UPDATE\s+\w+\s+SET\s|DELETE\s+FROM\s|CREATE\s+(TABLE|INDEX|UNIQUE)"
    r"|ALTER\s+TABLE\s|DROP\s+(TABLE|INDEX)\s|PRAGMA\s|VACUUM\b|SAVEPOINT\s|ROLLBACK\b|BEGIN\s+(IMMEDIATE|EXCLUSIVE))",
    re.DOTALL,
)
_EVENT = re.compile(r"[a-z]+(_[a-z0-9]+)+")
# In two halves, so that this file does not break its own rule.
_FORBIDDEN_TEXT = re.compile(
    "|".join((
        "pypi" r"\.org", "python" r"hosted\.org", "npm" r"js\.(org|com)", r"(?<!emit)-index" "-url",
        r"(?<![\w.~}])/(work|" r"root)/", r"(?<![\w.~}])/home" r"/[a-z]+/", r"/Us" r"ers/[a-z]+/",
    ))
)  # fmt: skip


class Source(msgspec.Struct, frozen=True):
    """One Python file of the package: ``path`` is relative to the repository's root, ``module`` dotted."""

    path: str
    text: str
    tree: ast.Module
    nodes: list[ast.AST]

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def lies_in(self, *places: str) -> bool:
        """Whether the file is one of ``places``, or inside one that ends with a slash."""
        return any(self.path.startswith(place) if place.endswith("/") else self.path == place for place in places)


Found = Iterator[tuple[int, str]]
Rule = Callable[[Source], Found]


def parse(path: str, text: str) -> Source:
    tree = ast.parse(text)
    return Source(path, text, tree, list(ast.walk(tree)))


@functools.cache
def read_package() -> list[Source]:
    """Every Python file of the package, read once."""
    files = sorted((ROOT / "stentor").rglob("*.py"))
    return [parse(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")) for file in files]


def report(rule: Rule, sources: Iterable[Source]) -> list[str]:
    """``path:line what`` for every place that breaks ``rule``."""
    return [f"{source.path}:{line} {what}" for source in sources for line, what in rule(source)]


def _functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in source.nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def _imports(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import; ``from a import b`` gives ``a.b``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _docstrings(source: Source) -> set[int]:
    """The ids of the nodes that are docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in source.nodes if isinstance(node, owners)]
    firsts = [body[0].value for body in bodies if body and isinstance(body[0], ast.Expr)]
    return {id(first) for first in firsts if isinstance(first, ast.Constant)}


def environment_is_read_by_settings(source: Source) -> Found:
    """Only settings look into the environment; engines are processes of their own and may.

    The command line and the composition root may hand ``os.environ`` as a whole to a callee.
    """
    if source.lies_in("stentor/settings/", "stentor/engines/"):
        return
    handed_over: set[int] = set()
    if source.lies_in("stentor/cli/", "stentor/app/"):
        calls = (node for node in source.nodes if isinstance(node, ast.Call))
        handed_over = {id(each) for call in calls for each in (*call.args, *(word.value for word in call.keywords))}
    for node in source.nodes:
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv"):
            if isinstance(node.value, ast.Name) and node.value.id == "os" and id(node) not in handed_over:
                yield node.lineno, f"os.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from ((node.lineno, each.name) for each in node.names if each.name in ("environ", "getenv"))


def sql_lives_in_tables(source: Source) -> Found:
    """Statements are written in ``table.py`` and in the store."""
    if source.path.endswith("/table.py") or source.lies_in("stentor/store/"):
        return
    skipped = _docstrings(source)
    for node in source.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            if _SQL.match(node.value):
                yield node.lineno, f"SQL text {node.value.strip()[:40]!r}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "sqlalchemy":
            makers = sorted(each.name for each in node.names if each.name in _STATEMENT_MAKERS)
            yield from ((node.lineno, f"imports sqlalchemy's {name}") for name in makers)


def tables_are_private(source: Source) -> Found:
    """``stentor.people.table`` is imported inside ``stentor.people`` alone."""
    for line, name in _imports(source.nodes):
        parts = name.split(".")
        if parts[0] == "stentor" and "table" in parts:
            owner = ".".join(parts[: parts.index("table")])
            if not f"{source.module}.".startswith(f"{owner}."):
                yield line, f"imports {owner}.table"


def engines_know_core_alone(source: Source) -> Found:
    """Engine programs import nothing of the server but core."""
    if not source.lies_in("stentor/engines/"):
        return
    for line, name in _imports(source.nodes):
        if name.startswith("stentor.") and not name.startswith(("stentor.core", "stentor.engines")):
            yield line, f"imports {name}"


def imports_stand_at_the_top(source: Source) -> Found:
    """Imports that are put off go through ``core.lazy.load``."""
    if source.lies_in("stentor/core/lazy.py"):
        return
    for function in _functions(source):
        for line, name in _imports(ast.walk(function)):
            yield line, f"imports {name} inside {function.name}"
    for node in source.nodes:
        if isinstance(node, ast.Name) and node.id in ("__import__", "import_module"):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and node.attr == "import_module":
            yield node.lineno, node.attr


def files_are_short(source: Source) -> Found:
    """At most 400 lines a file."""
    lines = source.text.count("\n")
    if lines > FILE_LINES:
        yield lines, f"has {lines} lines, more than {FILE_LINES}"


def functions_are_short(source: Source) -> Found:
    """At most 50 lines a function, its docstring not counted."""
    for function in _functions(source):
        first = function.body[0]
        documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
        lines = (function.end_lineno or 0) - function.lineno + 1 - docstring
        if lines > FUNCTION_LINES:
            yield function.lineno, f"{function.name} has {lines} lines, more than {FUNCTION_LINES}"


def the_http_client_is_aiohttp(source: Source) -> Found:
    """No second HTTP client."""
    for line, name in _imports(source.nodes):
        if name.partition(".")[0] in _SLOW_CLIENTS:
            yield line, f"imports {name}"


def modules_are_named_for_what_they_are(source: Source) -> Found:
    """No utils, helpers, common or manager."""
    for part in source.module.split("."):
        if part in _VAGUE_NAMES:
            yield 1, f"is called {part}"


def modules_say_what_they_are_for(source: Source) -> Found:
    """Every module with code in it has a docstring."""
    if source.tree.body and not ast.get_docstring(source.tree):
        yield 1, "has no docstring"


def log_events_are_noun_verb_with_known_fields(source: Source) -> Found:
    """``log.event("noun_verb", …)`` names only allow-listed fields: others would be dropped at run time."""
    for node in source.nodes:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "event"):
            continue
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str) and not _EVENT.fullmatch(first.value):
            yield node.lineno, f"event {first.value!r} is not noun_verb"
        for keyword in node.keywords:
            if keyword.arg not in FIELDS | {"level", "cause", None}:
                yield node.lineno, f"field {keyword.arg!r} is not in telemetry.logs.FIELDS"


PACKAGE_RULES: tuple[Rule, ...] = (
    environment_is_read_by_settings,
    sql_lives_in_tables,
    tables_are_private,
    engines_know_core_alone,
    imports_stand_at_the_top,
    files_are_short,
    functions_are_short,
    the_http_client_is_aiohttp,
    modules_are_named_for_what_they_are,
    modules_say_what_they_are_for,
    log_events_are_noun_verb_with_known_fields,
)


def find_forbidden_text(text: str) -> Found:
    """Addresses of package registries and paths of somebody's machine."""
    for number, line in enumerate(text.splitlines(), 1):
        hit = _FORBIDDEN_TEXT.search(line)
        if hit:
            yield number, f"holds {hit.group()!r}"
