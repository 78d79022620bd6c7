"""One request for an answer, with the script that is in it."""

import dataclasses
import json
from typing import Any

from tests.scripted.script import DEFAULT_TEXT, Json, example_of, split_words


@dataclasses.dataclass
class Entry:
    """One request as ``GET /log`` shows it. Times are Unix seconds.

    ``ended`` is "open", "complete", "client_left" or "scripted"; ``closed_early_at`` says when the client's connection
    went away before the answer's end, also where the answer is played on to its end (non-stream, as llama-server does).
    ``frames`` counts SSE frames written, ``heard`` the steps of that name that were played.
    """

    n: int
    at: float
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    body_text: str
    ended: str = "open"
    ended_at: float | None = None
    closed_early: bool = False
    closed_early_at: float | None = None
    frames: int = 0
    heard: int = 0


class Ask:
    """One request for an answer, with its script."""

    def __init__(self, entry: Entry, default: Json) -> None:
        body = entry.body if isinstance(entry.body, dict) else {}
        self.body = body
        self.chat = "/chat/completions" in entry.path
        self.stream = bool(body.get("stream"))
        self.include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self.choices = int(body.get("n") or 1)
        self.prompt_tokens = self.count_prompt()
        self.script = self.find_script(default)
        cap = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("n_predict") or 0
        self.cap = 0 if self.script.get("ignore_cap") else int(cap)

    def messages(self) -> list[Json]:
        found = self.body.get("messages")
        return [message for message in found if isinstance(message, dict)] if isinstance(found, list) else []

    @staticmethod
    def text_of(content: Any) -> str:
        if isinstance(content, list):
            return " ".join(part.get("text", "") for part in content if isinstance(part, dict))
        return content if isinstance(content, str) else ""

    def count_prompt(self) -> int:
        if not self.chat:
            return max(1, len(split_words(self.text_of(self.body.get("prompt")))))
        return sum(len(split_words(self.text_of(message.get("content")))) + 4 for message in self.messages())

    def find_script(self, default: Json) -> Json:
        texts = [self.text_of(message.get("content")) for message in self.messages() if message.get("role") == "user"]
        text = (texts[-1] if texts else "") if self.chat else self.text_of(self.body.get("prompt"))
        if text.lstrip().startswith("{"):
            try:
                found: Json = json.loads(text)
            except ValueError:
                found = {}
            if isinstance(found, dict) and found:
                return {"do": [{"say": DEFAULT_TEXT}], **found}
        return default or {"do": [{"say": self.plain_answer()}]}

    def plain_answer(self) -> str:
        wanted = self.body.get("response_format") or {}
        if wanted.get("type") == "json_schema":
            return json.dumps(example_of(wanted["json_schema"].get("schema", {})))
        return '{"answer": "yes"}' if wanted.get("type") == "json_object" else DEFAULT_TEXT
