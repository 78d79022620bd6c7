"""The kinds of values that settings have: how text or a TOML value becomes a typed one, and what is wrong if it can't.

A parser takes what was written (text from the environment or the command line, any TOML value from the settings file)
and the folder that relative paths start from. It raises BadValue whose text completes the sentence «PORT … ».
"""

import base64
import binascii
import ipaddress
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from stentor.core.addresses import AllowList

Parser = Callable[[Any, Path], Any]

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class BadValue(ValueError):
    """What is wrong with a value, as the end of a sentence that begins with the setting's name."""


class Kind(msgspec.Struct, frozen=True):
    """A kind of value: the words for it in the reference page, and its parser."""

    words: str
    parse: Parser


def _as_text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise BadValue(f"must be text, not {_toml_name(raw)}")
    if "\0" in raw:
        raise BadValue("holds a NUL character")
    return raw.strip()


def _toml_name(raw: Any) -> str:
    names = {bool: "true/false", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return names.get(type(raw), type(raw).__name__)


def _parse_integer(raw: Any, least: int, most: int | None) -> int:
    if isinstance(raw, bool) or not isinstance(raw, (int, str)):
        raise BadValue(f"must be a whole number, not {_toml_name(raw)}")
    try:
        number = int(raw)
    except ValueError:
        raise BadValue(f"must be a whole number, not {raw!r}") from None
    if number < least or (most is not None and number > most):
        limits = f"{least} or more" if most is None else f"from {least} to {most}"
        raise BadValue(f"must be {limits}, not {number}")
    return number


def _parse_number(raw: Any, least: float) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise BadValue(f"must be a number, not {_toml_name(raw)}")
    try:
        number = float(raw)
    except ValueError:
        raise BadValue(f"must be a number, not {raw!r}") from None
    if not math.isfinite(number) or number < least:
        raise BadValue(f"must be a finite number, {least:g} or more, not {raw}")
    return number


def _parse_switch(raw: Any, _base: Path) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise BadValue(f"must be on or off (1/0, true/false, yes/no), not {raw!r}")


def _parse_path(raw: Any, base: Path) -> Path:
    text = _as_text(raw)
    if not text:
        raise BadValue("must be a path, not empty")
    path = Path(text).expanduser()
    return path if path.is_absolute() else (base / path).absolute()


def _split(raw: Any) -> list[str]:
    if isinstance(raw, list):
        return [_as_text(item) for item in raw]
    return [part.strip() for part in _as_text(raw).split(",") if part.strip()]


def _parse_paths(raw: Any, base: Path) -> tuple[Path, ...]:
    return tuple(_parse_path(item, base) for item in _split(raw))


def _parse_words(raw: Any, _base: Path) -> tuple[str, ...]:
    return tuple(_split(raw))


def _parse_percents(raw: Any, _base: Path) -> tuple[int, ...]:
    items = raw if isinstance(raw, list) else _split(raw)
    return tuple(sorted({_parse_integer(item, 1, 100) for item in items}))


def _parse_networks(raw: Any, _base: Path) -> tuple[str, ...]:
    networks = []
    for item in _split(raw):
        try:
            networks.append(str(ipaddress.ip_network(item, strict=False)))
        except ValueError:
            raise BadValue(f"must list addresses or networks like 10.0.0.0/8, not {item!r}") from None
    return tuple(networks)


def _parse_egress(raw: Any, _base: Path) -> tuple[str, ...]:
    entries = tuple(_split(raw))
    try:
        AllowList(entries)
    except ValueError as error:
        raise BadValue(f"holds a wrong entry: {error}") from None
    return entries


def _parse_url(raw: Any, _base: Path) -> str:
    text = _as_text(raw)
    try:
        parts = urlsplit(text)
        port_is_fine = parts.port is None or parts.port >= 0
    except ValueError as error:
        raise BadValue(f"is not an address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise BadValue(f"must be an address that starts with http:// or https://, not {text!r}")
    return text.rstrip("/")


def _parse_key_bytes(raw: Any, _base: Path) -> bytes:
    text = "".join(_as_text(raw).split())
    if len(text) == 64:
        try:
            return bytes.fromhex(text)
        except ValueError:
            pass
    try:
        padded = text.replace("-", "+").replace("_", "/")
        key = base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise BadValue("must be 32 bytes written as 64 hex digits or as base64")
    return key


def _parse_api_key(raw: Any, _base: Path) -> str:
    text = _as_text(raw)
    if text == "changeme":
        raise BadValue("is still the placeholder 'changeme', which everybody knows; choose another key")
    if not 1 <= len(text) <= 255 or not all(0x21 <= ord(letter) <= 0x7E for letter in text):
        raise BadValue("must be 1 to 255 visible ASCII characters without spaces")
    return text


def _parse_host(raw: Any, _base: Path) -> str:
    text = _as_text(raw)
    if "/" in text or text.count(":") == 1:
        raise BadValue(f"must be an address or a host name alone, like 0.0.0.0, not {text!r}; PORT has the port")
    return text


def _parse_bind_address(raw: Any, _base: Path) -> tuple[str, int]:
    text = _as_text(raw)
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise BadValue(f"must look like 127.0.0.1:4000 or [::1]:4000, not {text!r}")
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host and not bracketed:
        raise BadValue(f"must put an IPv6 address in brackets, like [::1]:4000, not {text!r}")
    return (host[1:-1] if bracketed else host), int(port)


def _parse_database(raw: Any, base: Path) -> str:
    """A path or a ``sqlite:`` address as sqlx reads it (three slashes: absolute); other schemes are kept as written."""
    text = _as_text(raw)
    if text.startswith("sqlite:"):
        name = text.removeprefix("sqlite:").removeprefix("//").partition("?")[0]
        if name in ("", ":memory:"):
            raise BadValue("must name a file: a database in memory would lose the books at every stop")
        return str(_parse_path(name, base))
    if "://" in text:
        scheme = text.partition("://")[0]
        if scheme not in ("postgresql", "postgres"):
            raise BadValue(f"must be a path, sqlite:// or postgresql://, not {scheme}://")
        return text
    return str(_parse_path(text, base))


def choice(*words: str, fold: Callable[[str], str] = str.lower) -> Kind:
    """One word of a few, in any case."""

    def parse(raw: Any, _base: Path) -> str:
        word = fold(_as_text(raw))
        if word not in words:
            raise BadValue(f"must be one of {', '.join(words)}, not {raw!r}")
        return word

    return Kind(" \\| ".join(f"`{word}`" for word in words), parse)


def integer(least: int = 0, most: int | None = None, unit: str = "") -> Kind:
    """A whole number in a range."""
    span = f" ≥ {least}" if most is None else f" {least}…{most}"
    return Kind(f"whole number{span}{' ' + unit if unit else ''}", lambda raw, _base: _parse_integer(raw, least, most))


def number(least: float = 0.0, unit: str = "") -> Kind:
    """A finite number, not below ``least``."""
    return Kind(f"number ≥ {least:g}{' ' + unit if unit else ''}", lambda raw, _base: _parse_number(raw, least))


TEXT = Kind("text", lambda raw, _base: _as_text(raw))
SWITCH = Kind("`on` \\| `off`", _parse_switch)
PATH = Kind("path", _parse_path)
PATHS = Kind("paths, separated by commas", _parse_paths)
WORDS = Kind("words, separated by commas", _parse_words)
PERCENTS = Kind("percents 1…100, separated by commas", _parse_percents)
NETWORKS = Kind("networks (CIDR), separated by commas", _parse_networks)
EGRESS = Kind("hosts, addresses and networks, separated by commas", _parse_egress)
URL = Kind("http(s) address", _parse_url)
KEY_BYTES = Kind("32 bytes as hex or base64", _parse_key_bytes)
API_KEY = Kind("1–255 visible characters", _parse_api_key)
HOST = Kind("text", _parse_host)
BIND_ADDRESS = Kind("`host:port`", _parse_bind_address)
DATABASE = Kind("path, `sqlite://…` or `postgresql://…`", _parse_database)
