"""``stentor chat``: talk to the running server, streamed, over its public API."""

import http.client
import ssl
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
import msgspec

from stentor.cli.options import place_options, read_settings
from stentor.cli.render import printable
from stentor.core.errors import StentorError
from stentor.store.lock import find_holder

if TYPE_CHECKING:
    from stentor.settings import Settings

TIMEOUT_S = 300.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - an address to replace, not to bind

Message = dict[str, str]

_NOWHERE = "Start one with `stentor up`, or name it with --url."
_ELSEWHERE = "One runs on this data folder: name with --url the address that it told when it started."


@click.command()
@click.argument("message", required=False)
@click.option("--url", help="The server's address, ending in /v1. [default: from the settings]")
@click.option("--key", help="An API key. [default: STENTOR_API_KEY, else asked for]")
@click.option("--model", help="The model to talk to. [default: the one here that can talk]")
@click.option("--system", help="Instructions that come before the conversation.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer.")
@place_options
def chat(config: str | None, data_dir: str | None, message: str | None, **given: Any) -> None:
    """Talk to the running server; with MESSAGE (or piped text) it answers once and ends."""
    settings = read_settings({"config": config, "data_dir": data_dir})
    key: str = given["key"] or settings.api_key or _ask_for_key()
    elsewhere = not given["url"] and find_holder(settings.data_dir) is not None
    server = Server(given["url"] or base_url_of(settings), key, _ELSEWHERE if elsewhere else _NOWHERE)
    model = given["model"] or server.choose_model()
    opening = [{"role": "system", "content": given["system"]}] if given["system"] else []
    talk = Talk(server, model, opening, given["max_tokens"])
    if message is None and not sys.stdin.isatty():
        message = sys.stdin.read()
    if message is not None:
        talk.say(message)
        return
    _converse(talk)


def _ask_for_key() -> str:
    if not sys.stdin.isatty():
        raise StentorError(
            "Talking needs an API key: set STENTOR_API_KEY, or give --key. `stentor keys create` makes one."
        )
    return str(click.prompt("API key", hide_input=True, err=True))


def base_url_of(settings: "Settings") -> str:
    """Where a server with these settings is reached from this machine."""
    if settings.public_url is not None:
        return settings.public_url.removesuffix("/v1") + "/v1"
    host = _EVERYWHERE.get(settings.host, settings.host)
    scheme = "http" if settings.tls_cert is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}/v1"


class Server:
    """The OpenAI-compatible endpoint at ``base_url``, called with one key."""

    def __init__(self, base_url: str, key: str, advice: str) -> None:
        """``advice`` is what to do where nobody answers."""
        parts = urlsplit(base_url.rstrip("/"))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise StentorError(f"{base_url} is not an address like http://127.0.0.1:4000/v1.")
        self._base_url = base_url
        self._parts = parts
        self._advice = advice
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def choose_model(self) -> str:
        """The model to talk to where none is named. Raises StentorError if there is none.

        Of several the server chooses, or says that it can't: it never takes one that is elsewhere and costs money.
        """
        with self._call("GET", "/models", None) as answer:
            models = msgspec.json.decode(answer.read()).get("data", [])
        talking = [model for model in models if "text" in model.get("abilities", ("text",))]
        if not talking:
            raise StentorError(
                "This key may use no model that can talk. `stentor models list` shows what the server has."
            )
        return "default" if len(talking) > 1 and "abilities" in talking[0] else str(talking[0]["id"])

    def stream_chat(self, body: dict[str, Any]) -> Iterator[str]:
        """The pieces of an answer as they come. Raises StentorError for an error, also one after the start."""
        with self._call("POST", "/chat/completions", {**body, "stream": True}) as answer:
            for line in answer:
                text = line.strip()
                if not text.startswith(b"data:"):
                    continue
                payload = text[5:].strip()
                if payload == b"[DONE]":
                    return
                yield _piece(msgspec.json.decode(payload))
        raise StentorError("The answer was cut off by the server.")

    def _call(self, method: str, path: str, body: Any) -> http.client.HTTPResponse:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        assert self._parts.hostname is not None
        connection = kind(self._parts.hostname, self._parts.port, timeout=TIMEOUT_S)
        try:
            data = None if body is None else msgspec.json.encode(body)
            connection.request(method, self._parts.path + path, data, self._headers)
            answer = connection.getresponse()
        except ssl.SSLError as error:
            raise StentorError(f"{self._base_url} can't be spoken to by TLS: {error}. Does it speak http?") from None
        except (OSError, http.client.HTTPException) as error:
            raise StentorError(f"No server answers on {self._base_url}: {error}. {self._advice}") from None
        if answer.status != http.HTTPStatus.OK:
            raise StentorError(_error_of(answer.read(), answer.status))
        return answer


def _piece(chunk: Any) -> str:
    if isinstance(chunk, dict) and "error" in chunk:
        error = chunk["error"]
        raise StentorError(str(error.get("message") if isinstance(error, dict) else error))
    choices = chunk.get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or "")


def _error_of(payload: bytes, status: int) -> str:
    try:
        return str(msgspec.json.decode(payload)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"The server refused with status {status}."


class Talk:
    """A conversation: what was said so far, and the model that answers."""

    def __init__(self, server: Server, model: str, opening: list[Message], max_tokens: int | None) -> None:
        self.model = model
        self._server = server
        self._messages = list(opening)
        self._max_tokens = max_tokens

    def say(self, text: str) -> None:
        """Say something and print the answer as it comes; Ctrl-C ends the answer and keeps what came of it."""
        self._messages.append({"role": "user", "content": text})
        body: dict[str, Any] = {"model": self.model, "messages": self._messages}
        if self._max_tokens is not None:
            body["max_tokens"] = self._max_tokens
        heard: list[str] = []
        try:
            for piece in self._server.stream_chat(body):
                heard.append(piece)
                click.echo(printable(piece), nl=False)
        except KeyboardInterrupt:
            click.echo(" …", nl=False)
        except StentorError:
            self._messages.pop()
            raise
        click.echo()
        self._messages.append({"role": "assistant", "content": "".join(heard)})


def _converse(talk: Talk) -> None:
    click.echo(f"Talking to {talk.model}. An empty line or Ctrl-D ends.", err=True)
    while True:
        try:
            text = input("› ").strip()
        except EOFError:
            return
        if not text:
            return
        try:
            talk.say(text)
        except StentorError as error:
            click.echo(f"stentor: {error}", err=True)
