"""A server to be killed: hosts a scheduler, brings models up, prints one JSON line, and waits.

python orphan_host.py <data-dir> <first-port> <json of a list of models>
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import msgspec
import uvloop

from stentor.core.clock import SystemClock
from stentor.core.ids import ModelId
from stentor.runtime.scheduler import LocalScheduler
from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.spec import ModelSpec


class Files:
    async def fetch(self, source: str, progress: object = None) -> Path:
        return Path(source.removeprefix("file:"))

    def find(self, source: str) -> Path | None:
        return Path(source.removeprefix("file:"))


async def main() -> None:
    models = msgspec.json.decode(sys.argv[3], type=tuple[ModelSpec, ...])
    settings = RuntimeSettings(data_dir=Path(sys.argv[1]), slot_first_port=int(sys.argv[2]), models=models)
    scheduler = LocalScheduler(settings, Files(), os.environ, SystemClock())
    swept = [entry.pid for entry in scheduler.sweep()]
    for model in models:
        await scheduler.start(ModelId(model.id))
    cards = await scheduler.list_instances()
    print(json.dumps({"pids": [card.pid for card in cards], "swept": swept}), flush=True)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    uvloop.run(main())
