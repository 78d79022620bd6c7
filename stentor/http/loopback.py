"""Calling the application without a connection: how a worker's management requests are answered by the authority."""

from stentor.core.operator import OperatorAnswer, OperatorCall
from stentor.http.connection import Message
from stentor.http.gateway import Gateway

_SAID_BY_THE_CONNECTION = (b"x-request-id", b"content-length", b"content-type")


async def call_app(app: Gateway, call: OperatorCall) -> OperatorAnswer:
    """Have ``app`` (the operator's) answer one request whole."""
    answer = OperatorAnswer(500, "application/json", b"", [])
    parts: list[bytes] = []
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if asked:
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": call.body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            for name, value in message["headers"]:
                if name == b"content-type":
                    answer.content_type = value.decode("latin-1")
                elif name not in _SAID_BY_THE_CONNECTION:
                    answer.headers.append((name.decode("latin-1"), value.decode("latin-1")))
        else:
            parts.append(message.get("body", b""))

    scope = {
        "type": "http",
        "method": call.method,
        "path": call.path,
        "query_string": call.query,
        "headers": [(b"content-type", b"application/json"), (b"accept", call.accept.encode("latin-1"))],
        "client": (call.address, 0) if call.address else None,
        "stentor.caller": call.caller,
    }
    await app(scope, receive, send)
    answer.body = b"".join(parts)
    return answer
