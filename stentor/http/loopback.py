"""Calling the application without a connection: how a worker's management requests are answered by the authority."""

from stentor.core.operator import OperatorAnswer, OperatorCall
from stentor.http.connection import Message
from stentor.http.gateway import Gateway


async def call_app(app: Gateway, call: OperatorCall) -> OperatorAnswer:
    """Have ``app`` (the operator's) answer one request whole."""
    status, content_type = 500, "application/json"
    parts: list[bytes] = []
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if asked:
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": call.body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, content_type
        if message["type"] == "http.response.start":
            status = message["status"]
            for name, value in message["headers"]:
                if name == b"content-type":
                    content_type = value.decode("latin-1")
        else:
            parts.append(message.get("body", b""))

    scope = {
        "type": "http",
        "method": call.method,
        "path": call.path,
        "query_string": call.query,
        "headers": [(b"content-type", b"application/json")],
        "stentor.actor": call.actor,
    }
    await app(scope, receive, send)
    return OperatorAnswer(status, content_type, b"".join(parts))
