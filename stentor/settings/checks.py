"""What can only be said of settings together: the engine binary behind an old name, files' rights, open addresses."""

import ipaddress
import stat
from pathlib import Path

from stentor.settings.compose import Settings
from stentor.settings.layers import Notice, SettingsError

_LAST_PORT = 65535
_KEY_LEAST, _KEY_CHARACTERS = 20, 8
_PUBLIC_BITS = stat.S_IRGRP | stat.S_IROTH


def choose_engine_binary(path: Path | None, where: str) -> tuple[Path | None, list[Notice]]:
    """The ``llama-server`` to use: a ``llama-cli`` means the server beside it, else the embedded engine is used."""
    if path is None:
        return None, []
    if path.name == "llama-cli":
        beside = path.with_name("llama-server")
        if beside.is_file():
            return beside, [Notice("alias", f"{where} names llama-cli; the llama-server beside it is used.")]
        return None, [
            Notice("risk", f"{where} names {path}, but no llama-server lies beside it; the embedded engine is used.")
        ]
    if not path.is_file():
        raise SettingsError(f"{where} names {path}, which does not exist. Name a llama-server, or remove the setting.")
    return path, []


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def find_risks(settings: Settings) -> list[Notice]:
    """Combinations that work and that an operator should know of; one that can't work raises SettingsError."""
    values = settings.values
    if (values["TLS_CERT"] is None) != (values["TLS_KEY"] is None):
        raise SettingsError("TLS needs both TLS_CERT and TLS_KEY; only one of them is set.")
    last_port = settings.runtime.slot_first_port + settings.runtime.slot_count - 1
    if last_port > _LAST_PORT:
        raise SettingsError(f"SLOT_FIRST_PORT and SLOT_COUNT lead up to port {last_port}; ports end at {_LAST_PORT}.")
    if values["RING_KEY_MODE"] == "bridge" and not is_loopback(settings.host) and not values["RING_BRIDGE_PUBLIC"]:
        raise SettingsError(
            f"RING_KEY_MODE is bridge and {settings.host} is reached by other machines: anyone could keep data here. "
            "Listen on loopback, use strict, or set RING_BRIDGE_PUBLIC to accept that."
        )
    risks = []
    if not is_loopback(settings.host) and not values["TRUSTED_PROXIES"] and values["TLS_CERT"] is None:
        risks.append(
            f"Other machines reach {settings.host} without TLS, so keys travel readable, and passwords are refused. "
            "Set TLS_CERT and TLS_KEY, or put a proxy with TLS in front and name it in TRUSTED_PROXIES."
        )
    if "*" in values["CORS_ORIGINS"]:
        risks.append("CORS_ORIGINS is *: scripts of every website may call this server with a key they know.")
    if settings.api_key and _is_guessable(settings.api_key):
        risks.append(
            "API_KEY can be guessed, and guesses at keys aren't slowed down. Take one of random characters: "
            "`openssl rand -hex 24`."
        )
    if _readable_secrets(settings):
        risks.append(f"{settings.config_file} holds secrets and other users can read it. Run chmod 600 on it.")
    return [Notice("risk", text) for text in risks]


def _is_guessable(text: str) -> bool:
    """Whether a key is shorter, or made of fewer characters, than one that a machine has drawn."""
    return len(text) < _KEY_LEAST or len(set(text)) < _KEY_CHARACTERS


def _readable_secrets(settings: Settings) -> bool:
    file = settings.config_file
    if file is None:
        return False
    secrets = ("MASTER_KEY", "API_KEY", "HF_TOKEN", "CACHE_URL", "RECEIPTS_PRIVATE_KEY_B64")
    held = any(str(file) in settings.origins.get(name, "") for name in secrets)
    return held and bool(file.stat().st_mode & _PUBLIC_BITS)
