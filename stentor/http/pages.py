"""The two pages that need no console: what this server is, and its API's reference."""

import html
import json
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1c2127}"
    "code,pre{font:14px/1.45 ui-monospace,monospace;background:#f2f4f7;border-radius:4px}"
    "code{padding:.1em .3em}pre{padding:.7em;overflow:auto}"
    "h2{margin-top:2rem;border-top:1px solid #d8dee6;padding-top:1rem}"
    ".m{display:inline-block;min-width:3.5rem;font-weight:600}a{color:#0b5cad}"
    "@media(prefers-color-scheme:dark){body{background:#14171a;color:#dfe4ea}code,pre{background:#22272d}"
    "h2{border-color:#343b44}a{color:#6db3f2}}"
)


def _page(title: str, body: str) -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><body>{body}</body></html>"
    )


def root_page(version: str) -> str:
    """The page at ``/`` for a browser."""
    return _page(
        "Stentor",
        f"<h1>Stentor {html.escape(version)}</h1><p>An OpenAI-compatible AI server is running here.</p>"
        "<ul><li><a href=/docs>API reference</a> (<a href=/openapi.json>OpenAPI document</a>)</li>"
        "<li><a href=/health>Health</a></li></ul>"
        "<p>Point any OpenAI client at <code>/v1</code> of this address, with a key from "
        "<code>stentor keys create</code>.</p>",
    )


def docs_page(document: dict[str, Any]) -> str:
    """The OpenAPI document as one page without scripts."""
    parts = [
        f"<h1>Stentor API {html.escape(document['info']['version'])}</h1>",
        "<p>The same as a document for machines: <a href=/openapi.json>openapi.json</a>.</p>",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(_operation(path, method, operation))
    parts.append("<h2 id=schemas>Schemas</h2>")
    for name, schema in document["components"]["schemas"].items():
        text = html.escape(json.dumps(schema, indent=2))
        parts.append(f"<h3 id='{html.escape(name)}'>{html.escape(name)}</h3><pre>{text}</pre>")
    return _page("Stentor API", "".join(parts))


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    lines = [
        f"<h2><span class=m>{method.upper()}</span> <code>{html.escape(path)}</code></h2>",
        f"<p>{html.escape(operation['summary'])} {html.escape(operation['description'])}</p>",
    ]
    body = operation.get("requestBody")
    if body is not None:
        lines.append(f"<p>Request: {_link(body['content'])}</p>")
    lines.append(f"<p>Answer: {_link(operation['responses']['200']['content'])}</p>")
    return "".join(lines)


def _link(content: dict[str, Any]) -> str:
    words = []
    for media_type, value in content.items():
        ref = value.get("schema", {}).get("$ref", "")
        name = html.escape(ref.rpartition("/")[2])
        words.append(f"<code>{html.escape(media_type)}</code>" + (f" <a href='#{name}'>{name}</a>" if name else ""))
    return ", ".join(words)
