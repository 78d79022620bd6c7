"""The OpenAPI 3.1 document, made from the surface table and the wire types."""

import re
from typing import Any

import msgspec

from stentor.http import wire
from stentor.http.surface import SURFACE, Route

_REF = "#/components/schemas/{name}"
_ACCESS_TEXT = {
    "public": "Anyone may call this.",
    "key": "Needs an API key with the scope '{scope}'.",
    "admin": "Needs an API key with the scope 'admin', or the server's own Unix socket.",
    "metrics": "Needs a key with the scope 'admin'; open on this machine while the server listens on loopback alone.",
}


def openapi_document(version: str) -> dict[str, Any]:
    """The whole document as plain JSON values."""
    types: list[Any] = [wire.ErrorEnvelope, wire.DetailEnvelope]
    for route in SURFACE:
        types += [kind for kind in (route.request, route.response) if kind is not None and kind not in types]
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
            },
        },
    }


def _operation(route: Route, refs: dict[int, Any]) -> dict[str, Any]:
    ok: dict[str, Any] = {"description": "The answer."}
    schema = refs[id(route.response)] if route.response is not None else {}
    ok["content"] = {route.media_type: {"schema": schema} if schema else {}}
    if route.streams:
        ok["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    envelope = wire.ErrorEnvelope if route.envelope == "openai" else wire.DetailEnvelope
    error = {
        "description": "What was wrong, and what to do.",
        "content": {"application/json": {"schema": refs[id(envelope)]}},
    }
    operation: dict[str, Any] = {
        "operationId": f"{route.handler}_{route.path.strip('/').replace('/', '_')}",
        "summary": route.summary,
        "description": _ACCESS_TEXT[route.access].format(scope=route.scope),
        "responses": {"200": ok, "default": error},
    }
    names = re.findall(r"{(\w+)}", route.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if route.request is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": refs[id(route.request)]}},
        }
    if route.access != "public":
        operation["security"] = [{"bearer": []}, {"apiKey": []}]
    return operation
