"""The OpenAPI 3.1 document, made from the surface table and the wire types."""

import re
from typing import Any

import msgspec

from stentor.http import wire
from stentor.http.dialects import messages_wire, ollama_wire
from stentor.http.errors import CODES, Envelope
from stentor.http.ring.parameters import RING_PARAMETERS, RING_RANGES
from stentor.http.route import Access, Route
from stentor.http.sessions import COOKIES
from stentor.http.surface import SURFACE

_REF = "#/components/schemas/{name}"
_ACCESS_TEXT = {
    "public": "Anyone may call this.",
    "key": "Needs an API key with the scope '{scope}'.",
    "user": "Needs an API key, or a user's session; about the caller's own things.",
    "admin": "Needs an API key with the scope 'admin', an administrator's session, or the server's own Unix socket.",
    "metrics": "Needs a key with the scope 'admin'; open on this machine while the server listens on loopback alone.",
}
_ERRORS: dict[Access, tuple[int, ...]] = {
    "public": (400, 500),
    "metrics": (400, 401, 403, 500, 503),
    "key": (400, 401, 403, 404, 500, 503),
    "user": (400, 401, 403, 404, 409, 413, 429, 500, 503),
    "admin": (400, 401, 403, 404, 409, 413, 500, 503),
}
_ENVELOPES: dict[Envelope, Any] = {
    "openai": wire.ErrorEnvelope,
    "detail": wire.DetailEnvelope,
    "anthropic": messages_wire.AnthropicError,
    "ollama": ollama_wire.OllamaError,
    "lmserv": wire.DetailEnvelope,
}
_ERRORS_OF_ANSWERS = (402, 413, 429, 502)
_ERRORS_OF_HANDLERS: dict[str, tuple[int, ...]] = {
    "admin_login": (401, 403, 413, 429, 503),
    "user_login": (401, 403, 413, 429, 503),
    "ask_signup": (403, 413, 429, 503),
    "register_cli": (403, 413, 429, 503),
    "ring_verify_receipt": (413, 422, 503),
}
_TEXT = {"type": "string"}
_TIME = {"type": "integer", "description": "Microseconds since 1970, UTC."}
_QUERY: dict[str, dict[str, Any]] = {
    **RING_PARAMETERS,
    "user": {**_TEXT, "description": "Name, email or id."},
    "project": {**_TEXT, "description": "A project's id."},
    "key": {**_TEXT, "description": "A key's id."},
    "model": {**_TEXT, "description": "A model's id."},
    "request_id": {**_TEXT, "description": "The x-request-id of an answer."},
    "status": {"enum": ["completed", "cancelled", "failed"]},
    "since_us": _TIME,
    "until_us": _TIME,
    "q": {**_TEXT, "description": "What to look for."},
    "files": {"type": "boolean", "description": "Delete what was fetched for it, too."},
    "wait_s": {"type": "integer", "description": "How long to wait for something new, at most 30 s."},
    "by": {"enum": ["day", "model", "key", "user", "project"], "default": "day"},
    "days": {"type": "integer", "minimum": 1, "maximum": 366, "default": 30},
    "actor": {**_TEXT, "description": "Who did it."},
    "action": {**_TEXT, "description": "What was done, such as key_create."},
    "subject_kind": {**_TEXT, "description": "What it was done to: key, user, model, …"},
    "subject": {**_TEXT, "description": "Its id."},
    "state": {"enum": ["pending", "approved", "rejected"]},
    "after": {**_TEXT, "description": "The 'next' of the page before."},
    "limit": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
}
_RANGES: dict[tuple[str, str], dict[str, Any]] = {
    **RING_RANGES,
    ("get_uptime", "days"): {"maximum": 90},
    ("search_models", "limit"): {"maximum": 100, "default": 20},
}


def openapi_document(version: str) -> dict[str, Any]:
    """The whole document as plain JSON values."""
    types: list[Any] = list(dict.fromkeys(_ENVELOPES.values()))
    for route in SURFACE:
        found = (kind for kind in (route.request, route.response) if kind is not None)
        types += [kind for kind in found if all(kind is not known for known in types)]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    refs = dict(zip(map(id, types), schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in SURFACE:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Stentor", "version": version, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "adminSession": {"type": "apiKey", "in": "cookie", "name": COOKIES["admin"]},
                "userSession": {"type": "apiKey", "in": "cookie", "name": COOKIES["user"]},
            },
        },
    }


def _operation(route: Route, refs: dict[int, Any]) -> dict[str, Any]:
    ok: dict[str, Any] = {"description": "The answer."}
    schema = refs[id(route.response)] if route.response is not None else {}
    ok["content"] = {route.media_type: {"schema": schema} if schema else {}}
    others = route.also or (("text/event-stream",) if route.streams else ())
    ok["content"] |= {media_type: {"schema": _TEXT} for media_type in others}
    operation: dict[str, Any] = {
        "operationId": f"{route.handler}_{route.method.lower()}_{route.path.strip('/').replace('/', '_')}",
        "summary": route.summary,
        "description": _ACCESS_TEXT[route.access].format(scope=route.scope),
        "responses": {"200": ok, **_errors(route, refs)},
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "schema": _QUERY[name] | _RANGES.get((route.handler, name), {})}
        for name in route.query
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.request is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {
                "multipart/form-data" if route.form else "application/json": {"schema": refs[id(route.request)]}
            },
        }
    if route.access != "public":
        operation["security"] = [{"bearer": []}, {"apiKey": []}]
        if route.access in ("admin", "user"):
            operation["security"].append({f"{route.access}Session": []})
    return operation


def _errors(route: Route, refs: dict[int, Any]) -> dict[str, Any]:
    """The error answers of a route by status, each with its codes; ``default`` is for what any path may say."""
    content = {"application/json": {"schema": refs[id(_ENVELOPES[route.envelope])]}}
    answers: dict[str, Any] = {}
    statuses = {*_ERRORS[route.access], *_ERRORS_OF_HANDLERS.get(route.handler, ())}
    if route.streams or route.answers:
        statuses.update(_ERRORS_OF_ANSWERS)
    for status in sorted(statuses):
        said = [f"{code}: {meaning.text}" for code, meaning in CODES.items() if meaning.status == status]
        answers[str(status)] = {"description": " ".join(said), "content": content}
    if route.envelope == "anthropic":
        overloaded = CODES["overloaded"].text
        answers["529"] = {"description": f"overloaded: {overloaded}", "content": content}
    if route.handler == "health":
        healthless = {"application/json": {"schema": refs[id(wire.Health)]}, "text/plain": {"schema": _TEXT}}
        answers["503"] = {"description": "The database can't be written.", "content": healthless}
    answers["default"] = {"description": "What was wrong, and what to do.", "content": content}
    return answers
