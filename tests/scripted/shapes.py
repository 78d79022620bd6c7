"""What answers look like, as llama.cpp's server writes them."""

import time
from typing import Any

from tests.scripted.ask import Ask
from tests.scripted.script import Json

FINGERPRINT = "b0-scripted"


def error_body(status: int, message: str, kind: str, **more: Any) -> Json:
    return {"error": {"code": status, "message": message, "type": kind, **more}}


def speed_of(phase: str, tokens: int, took_ms: float) -> Json:
    """One half of ``timings``."""
    each_ms = took_ms / max(1, tokens)
    per_second = 1000 / each_ms if each_ms else 0.0
    return {
        f"{phase}_n": tokens,
        f"{phase}_ms": took_ms,
        f"{phase}_per_token_ms": each_ms,
        f"{phase}_per_second": per_second,
    }


class Shapes:
    """The pieces of one answer and the whole of it; knows what was said so far."""

    def __init__(self, ask: Ask, model: str) -> None:
        self.ask = ask
        self.how = ask.script
        self.model = ask.body.get("model") or model
        self.id = f"chatcmpl-scripted{time.monotonic_ns():x}"
        self.started = time.monotonic()
        self.tokens = 0
        self.finish = "stop"
        self.said: list[Json] = []

    def count(self, delta: Json) -> bool:
        self.tokens += 1
        if "tool_calls" in delta:
            self.finish = "tool_calls"
        if self.ask.cap and self.tokens >= self.ask.cap:
            self.finish = "length"
            return True
        return False

    def finish_reason(self) -> str:
        return str(self.how.get("finish") or self.finish)

    def wants_logprobs(self) -> bool:
        return bool(self.ask.body.get("logprobs"))

    @staticmethod
    def logprob(token: str) -> Json:
        known = {"id": len(token), "token": token, "bytes": list(token.encode()), "logprob": -0.25}
        return {**known, "top_logprobs": [known]}

    def choice(self, index: int, delta: Json, finish: str | None = None) -> Json:
        logprobs = None
        if self.wants_logprobs() and delta.get("content"):
            logprobs = {"content": [self.logprob(delta["content"])]}
        if not self.ask.chat:
            text = delta.get("content") or ""
            return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}
        choice: Json = {"finish_reason": finish, "index": index, "delta": delta}
        return choice | ({"logprobs": logprobs} if logprobs else {})

    def chunk(self, *choices: Json) -> Json:
        kind = "chat.completion.chunk" if self.ask.chat else "text_completion"
        head = {"choices": list(choices), "created": int(time.time()), "id": self.id, "model": self.model}
        return head | {"system_fingerprint": FINGERPRINT, "object": kind}

    def piece(self, index: int, delta: Json, finish: str | None = None) -> Json:
        """A frame that says ``delta`` in one choice."""
        return self.chunk(self.choice(index, delta, finish))

    def usage(self) -> Json:
        known = self.how.get("usage") or {}
        prompt = int(known.get("prompt_tokens", self.ask.prompt_tokens))
        output = int(known.get("completion_tokens", self.tokens * self.ask.choices))
        cached = int(known.get("cached_tokens", 0))
        details = {"cached_tokens": cached}
        counts = {"completion_tokens": output, "prompt_tokens": prompt, "total_tokens": prompt + output}
        counts["prompt_tokens_details"] = details
        if "reasoning_tokens" in known:
            counts["completion_tokens_details"] = {"reasoning_tokens": int(known["reasoning_tokens"])}
        return counts

    def timings(self) -> Json:
        return {} if self.how.get("usage") is False else {"timings": self.measures()["timings"]}

    def measures(self) -> Json:
        """``usage`` and ``timings``; nothing where the script wants none."""
        if self.how.get("usage") is False:
            return {}
        usage = self.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        took_ms = round((time.monotonic() - self.started) * 1000, 3)
        timings = {"cache_n": cached}
        timings |= speed_of("prompt", usage["prompt_tokens"] - cached, 1.0)
        timings |= speed_of("predicted", usage["completion_tokens"], took_ms)
        return {"usage": usage, "timings": timings}

    def whole(self) -> Json:
        """The answer as one JSON object."""
        choices = [self.whole_choice(index) for index in range(self.ask.choices)]
        kind = "chat.completion" if self.ask.chat else "text_completion"
        measures = self.measures()
        answer = {"choices": choices, "created": int(time.time()), "model": self.model}
        answer |= {"system_fingerprint": FINGERPRINT, "object": kind}
        answer |= {"usage": measures["usage"]} if measures else {}
        return answer | {"id": self.id} | ({"timings": measures["timings"]} if measures else {})

    def whole_choice(self, index: int) -> Json:
        text = "".join(delta.get("content", "") for delta in self.said)
        logprobs = {"content": [self.logprob(delta["content"]) for delta in self.said if "content" in delta]}
        if not self.ask.chat:
            return {
                "text": text,
                "index": index,
                "logprobs": logprobs if self.wants_logprobs() else None,
                "finish_reason": self.finish_reason(),
            }
        message: Json = {"role": "assistant", "content": text}
        thought = "".join(delta.get("reasoning_content", "") for delta in self.said)
        if thought:
            message["reasoning_content"] = thought
        calls = self.whole_calls()
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        choice = {"finish_reason": self.finish_reason(), "index": index, "message": message}
        return choice | ({"logprobs": logprobs} if self.wants_logprobs() else {})

    def whole_calls(self) -> list[Json]:
        calls: dict[int, Json] = {}
        for delta in self.said:
            for part in delta.get("tool_calls", ()):
                call = calls.setdefault(part["index"], {"type": "function", "function": {"arguments": ""}})
                function = part["function"]
                call["function"]["name"] = function.get("name", call["function"].get("name"))
                call["function"]["arguments"] += function.get("arguments", "")
                call["id"] = part.get("id", call.get("id"))
        return [calls[index] for index in sorted(calls)]
