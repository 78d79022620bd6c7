"""Every managed route has an operation of its name, and every operation a route."""

from pathlib import Path

import msgspec

from stentor.app.offline import open_offline
from stentor.http.surface import SURFACE
from stentor.settings import load_settings


async def test_routes_and_operations_are_the_same_names(tmp_path: Path) -> None:
    settings, _ = load_settings({"data_dir": str(tmp_path / "data")}, {}, tmp_path)
    offline = await open_offline(msgspec.structs.replace(settings))
    try:
        names = offline.operation_names()
    finally:
        await offline.close()
    assert names == {route.handler for route in SURFACE if route.managed}


def test_managed_routes_have_names_of_their_own() -> None:
    # The LLMRing surface serves some operations under two paths or methods.
    names = [route.handler for route in SURFACE if route.managed and not route.handler.startswith("ring_")]
    assert len(names) == len(set(names))
