"""Inputs made of texts and pictures: what clients send for them, and what llama.cpp is asked in their place.

An entry of ``input`` is ``{"text": …, "image": …}`` as Jina's API has it, a part of a message
(``{"type": "image_url", …}``), or ``{"content": [parts]}`` as OpenRouter's. A picture is a ``data:`` address or plain
base64. An engine gets the pieces as they are: what a model wants around them is the caller's to write.
"""

from typing import NamedTuple

import msgspec

from stentor.flows.ask import bad_request
from stentor.flows.media import NO_MEDIA, Size, check_total, measure_image

_BASE64 = ";base64,"
_encode = msgspec.json.Encoder().encode


class _Url(msgspec.Struct):
    url: str


class Part(msgspec.Struct):
    """A piece of an entry, or a whole one."""

    text: str | None = None
    image: str | None = None
    image_url: _Url | str | None = None


class Entry(Part):
    """One input that isn't just a text."""

    content: list[Part] | None = None


class Piece(NamedTuple):
    """A text, or a picture in base64."""

    text: str = ""
    picture: str = ""


class Pictured(NamedTuple):
    """One input with pictures. ``raw`` is what the client wrote."""

    raw: bytes
    pieces: tuple[Piece, ...]

    @property
    def texts(self) -> str:
        """What is written in it."""
        return "\n".join(piece.text for piece in self.pieces if piece.text)

    @property
    def pictures(self) -> list[str]:
        """What is to be seen in it."""
        return [piece.picture for piece in self.pieces if piece.picture]

    def write(self, marker: str) -> bytes:
        """The input in llama.cpp's words. It must not end in a picture: it would have nothing to read off."""
        text = "".join(marker if piece.picture else piece.text for piece in self.pieces)
        text += "\n" if self.pieces[-1].picture else ""
        return _encode({"prompt_string": text, "multimodal_data": self.pictures})


def read_entry(entry: Entry, raw: bytes) -> str | Pictured:
    """A text where there is nothing but text. Raises Refused (400)."""
    pieces = tuple(piece for part in (entry.content or [entry]) for piece in _pieces_of(part))
    if any(piece.picture for piece in pieces):
        return Pictured(raw, pieces)
    return "".join(piece.text for piece in pieces)


def _pieces_of(part: Part) -> list[Piece]:
    pieces = []
    image = part.image if part.image is not None else part.image_url
    if image is not None:
        address = image.url if isinstance(image, _Url) else image
        if not address:
            raise bad_request("'input' holds an image without its data.", "input")
        if not address.startswith(("data:", "http:", "https:")):
            address = f"data:image/any{_BASE64}{address}"
        pieces.append(Piece(picture=address))
    return [*pieces, Piece(part.text)] if part.text else pieces


def measure(inputs: list[Pictured]) -> tuple[list[Pictured], int]:
    """The inputs with the pictures' plain data, and its size as text in bytes. Raises Refused (400)."""
    total, size_bytes = NO_MEDIA, 0
    measured = []
    for each in inputs:
        pieces = []
        for piece in each.pieces:
            if piece.picture:
                total = Size(total.pixels + measure_image(piece.picture, "input").pixels)
                size_bytes += len(piece.picture)
                piece = Piece(picture=piece.picture.partition(_BASE64)[2])
            pieces.append(piece)
        measured.append(Pictured(each.raw, tuple(pieces)))
    check_total(total)
    return measured, size_bytes
