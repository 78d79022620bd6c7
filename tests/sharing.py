"""Which tests run on the same worker of pytest: those that share what is slow to start, so that it starts once.

These are the hooks of ``--dist loadgroup``. pytest-xdist's own finds no groups with pytest 9.2 (its issue 1386): they
travelled in the names of the tests, which a plugin can't change any more. Here the workers write them into a file.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Fixtures that start a server for many modules of a folder. Those of tests/http have work for every worker.
SERVERS = {
    ("tests/kinds", "_gate"),
    ("tests/speaking", "_gate"),
    ("tests/speech", "_hearing"),
    ("tests/upstreams", "_wide"),
    ("tests/http", "_strict"),
}
_FILE = "groups_file"


def find_group(item: pytest.Item) -> str:
    """What its mark says, or the server that it shares, or its module if that starts something for all; or nothing."""
    mark = item.get_closest_marker("xdist_group")
    if mark is not None:
        return str(mark.args[0])
    module = item.nodeid.partition("::")[0]
    folder = module.rpartition("/")[0]
    info = getattr(item, "_fixtureinfo", None)
    fixtures = {} if info is None else info.name2fixturedefs
    shared = next((name for name in fixtures if (folder, name) in SERVERS), "")
    if shared:
        return f"{folder}:{shared}"
    return module if any(each[-1].scope == "module" for each in fixtures.values()) else ""


def pytest_configure_node(node: Any) -> None:
    """In the one that hands out tests: where a worker is to write its groups."""
    node.workerinput[_FILE] = str(_make_path())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """In a worker: write them, before it says that it has collected its tests."""
    told = getattr(session.config, "workerinput", {}).get(_FILE)
    if told:
        fresh = Path(f"{told}.{os.getpid()}")
        fresh.write_text(json.dumps({item.nodeid: find_group(item) for item in session.items}))
        fresh.replace(told)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Hands out groups whole, and everything else one by one."""
    return _Sharing(config, log) if config.getvalue("dist") == "loadgroup" else None


def _make_path() -> Path:
    return Path(tempfile.gettempdir()) / f"stentor-tests-{os.getpid()}.groups"


class _Sharing(LoadScopeScheduling):
    _groups: dict[str, str] | None = None

    def _split_scope(self, nodeid: str) -> str:
        if self._groups is None:
            self._groups = json.loads(_make_path().read_text())
            _make_path().unlink()
        return self._groups[nodeid] or nodeid
