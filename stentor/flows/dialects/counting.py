"""How many tokens a chat's prompt has, template and tools included, as the model's engine or its upstream counts them.

Where neither counts, the texts are counted here (cl100k), and the answer says that it is an estimate. Counting is free:
it is admitted, limited and booked as an event, but nothing was generated, and the prompt is paid for when it is asked.
"""

from collections.abc import Iterator

import msgspec

from stentor.core.books import Grant, Usage
from stentor.flows.answer import EngineRubbish
from stentor.flows.ask import engine_body, prompt_text
from stentor.flows.dialects.reading import TranslatedAsk
from stentor.flows.inputs import InputsAsk, Step
from stentor.flows.upstreams.remote import COUNT_PATH


class Count(msgspec.Struct, omit_defaults=True):
    """The answer, in the engine's words and in Anthropic's; ``estimated`` is ours."""

    input_tokens: int
    estimated: bool = False


_decode = msgspec.json.Decoder(Count).decode
_encode = msgspec.json.Encoder().encode


def count_ask(chat: TranslatedAsk) -> InputsAsk:
    """The question how long this chat's prompt is."""
    ask = InputsAsk(chat.surface, chat.needs, "messages")
    ask.fields, ask.model = chat.fields, chat.model
    ask.prefix, ask.media, ask.input_bound = chat.prefix, chat.media, chat.input_bound
    ask.begin = lambda grant: _Counting(grant, chat)
    ask.text = lambda: prompt_text(chat)
    ask.can_estimate = True
    return ask


class _Counting:
    """One try."""

    input_tokens = 0
    is_free = True

    def __init__(self, grant: Grant, chat: TranslatedAsk) -> None:
        self._grant = grant
        self._chat = chat
        self._count: Count | None = None

    def steps(self) -> Iterator[Step]:
        grant = self._grant
        body = engine_body(self._chat, engine=grant.engine, upstream_model=grant.upstream_model, output_cap=1)
        yield Step(COUNT_PATH, body)

    def take(self, answer: bytes) -> None:
        try:
            self._count = _decode(answer)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise EngineRubbish(f"its count can't be read: {error}") from None

    def body(self, usage: Usage) -> bytes:
        return _encode(self._count or Count(usage.input_tokens, estimated=True))
