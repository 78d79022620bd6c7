"""LMServ's ``POST /chat``: a prompt in, plain text out, a chunk a token."""

from typing import Annotated, Any

import msgspec

from stentor.flows.ask import bad_request
from stentor.flows.client import AnswerHead
from stentor.flows.dialects.chunks import read_chunks
from stentor.flows.dialects.reading import TranslatedAsk, decode_body, translated, with_instructions

PATH = "/chat"


class LmservChat(msgspec.Struct):
    """The request, with LMServ's defaults. Its clients name no ``model``: the one that is called ``default`` answers,
    or the only one there is."""

    prompt: str
    model: str = "default"
    system_prompt: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 256
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.8
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.9
    repeat_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] = 1.1


_decode = msgspec.json.Decoder(LmservChat).decode


def read_lmserv(body: bytes) -> TranslatedAsk:
    """Read a ``/chat`` body. Raises Refused (400) naming the field."""
    wanted = decode_body(_decode, body)
    if not wanted.prompt:
        raise bad_request("'prompt' is empty; send at least one character.", "prompt")
    message = {"role": "user", "content": wanted.prompt}
    fields = {
        "model": wanted.model,
        "stream": True,
        "messages": with_instructions([wanted.system_prompt or ""], [message]),
        "max_tokens": wanted.max_tokens,
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "repeat_penalty": wanted.repeat_penalty,
    }
    return translated(PATH, fields)


class LmservVoice:
    """The words alone. There are none for a failure: the connection breaks off."""

    media_type = b"text/plain; charset=utf-8"
    whole_type = media_type

    def begin(self, head: AnswerHead) -> bytes:
        return b""

    def take(self, frames: bytes) -> list[bytes]:
        return [
            choice.said.content.encode()
            for chunk in read_chunks(frames)
            for choice in chunk.choices
            if choice.said.content
        ]

    def end(self, frames: bytes) -> list[bytes]:
        return self.take(frames)

    def failure(self, message: str, envelope: dict[str, Any]) -> bytes | None:
        return None

    def whole(self, head: AnswerHead, body: bytes) -> bytes:
        return b"".join(self.take(b"data: " + body + b"\n\n"))
