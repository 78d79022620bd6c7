"""The one door for imports that are put off: heavy libraries that most processes never need."""

import importlib
from types import ModuleType


def load(name: str) -> ModuleType:
    """Import ``name`` now and return the module. Raises ImportError as ``import`` does."""
    return importlib.import_module(name)
