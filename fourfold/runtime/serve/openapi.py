"""The server's own description: an OpenAPI document, and a page that shows it without fetching anything from elsewhere."""

from __future__ import annotations

import html
import json

_ERROR = {"type": "object", "properties": {"error": {"type": "object", "properties": {
    "code": {"type": "string"}, "message": {"type": "string"}, "mend": {"type": "string"}}}}}
_WORDS = {400: "the body is no JSON", 401: "the token is missing or wrong", 408: "the body did not come in time",
          409: "the new artefact was not taken", 413: "the body or the list of inputs is too large", 415: "the body is no JSON",
          422: "an input is not what the model reads",
          500: "the model raised", 502: "the worker ended before it had answered",
          503: "all workers are at work and the queue is full, or the server ends", 504: "no answer in time"}


def _answers(content: dict[str, object], *codes: int) -> dict[str, object]:
    found: dict[str, object] = {"200": {"description": "answered", "content": content}}
    for code in codes:
        found[str(code)] = {"description": _WORDS[code], "content": {"application/json": {"schema": _ERROR}}}
    return found


def _json(schema: dict[str, object], example: object = None) -> dict[str, object]:
    return {"application/json": {"schema": schema, **({"example": example} if example is not None else {})}}


def document(about: dict[str, object], rows: int, body: int, tokens: int, admin: bool) -> dict[str, object]:
    """The OpenAPI 3.1 document of a server of the artefact `about` (kind, reads, classes, generates, name, version)."""
    texts = about["reads"] == "texts"
    text: dict[str, object] = {"type": "string"}
    one: dict[str, object] = {"anyOf": [text, {"type": "array", "items": text, "minItems": 2, "maxItems": 2}]} if texts else {"type": "array"}
    inputs: dict[str, object] = {"anyOf": [text, {"type": "array", "items": one, "minItems": 1, "maxItems": rows}]} if texts else {
        "type": "array", "items": one, "minItems": 1, "maxItems": rows}
    properties: dict[str, object] = {"inputs": inputs, "scores": {"type": "boolean", "default": False},
                                     "probabilities": {"type": "boolean", "default": False}}
    usage = {"type": "object", "properties": {"cpu_seconds": {"type": "number"}, "joules": {"type": "number"},
                                              "gco2e": {"type": ["number", "null"]}, "cached": {"type": "integer"}}}
    answer: dict[str, object] = {"type": "object", "properties": {"predictions": {"type": "array"}, "scores": {"type": "array"},
                                 "probabilities": {"type": "array"}, "errors": {"type": "object"}, "model": text, "usage": usage}}
    example = {"inputs": ["A joy from start to end."] if texts else [[0.5, 1.0]]}
    paths: dict[str, object] = {
        "/predict": {"post": {"summary": f"Answer inputs ({about['kind']}); a body of at most {body:,} bytes, {rows:,} inputs.",
                              "requestBody": {"required": True, "content": _json({"type": "object", "properties": properties, "required": ["inputs"],
                                                                                  "additionalProperties": False}, example)},
                              "responses": _answers(_json(answer), 400, 408, 413, 415, 422, 500, 502, 503, 504)}},
        "/model": {"get": {"summary": "What is served: members, settings, classes.", "responses": _answers(_json({"type": "object"}))}},
        "/health": {"get": {"summary": "The process lives.", "responses": _answers(_json({"type": "object"}))}},
        "/ready": {"get": {"summary": "Requests would be answered: a worker has loaded and the server does not end.",
                           "responses": _answers(_json({"type": "object"}), 503)}},
        "/metrics": {"get": {"summary": "Counters, for Prometheus.", "responses": _answers({"text/plain": {"schema": text}})}},
    }
    if about.get("generates"):
        number: dict[str, object] = {"type": "number"}
        wanted: dict[str, object] = {"prompt": text, "max_new_tokens": {"type": "integer", "minimum": 1, "maximum": tokens}, "temperature": number,
                                     "top_k": {"type": "integer"}, "top_p": number, "seed": {"type": "integer"}, "stream": {"type": "boolean"}}
        paths["/generate"] = {"post": {
            "summary": "Continue a prompt; with stream, server-sent events.",
            "requestBody": {"required": True, "content": _json({"type": "object", "properties": wanted, "required": ["prompt"],
                                                                "additionalProperties": False}, {"prompt": "Once upon a time"})},
            "responses": _answers({**_json({"type": "object"}), "text/event-stream": {"schema": text}}, 400, 408, 413, 422, 500, 502, 503, 504)}}
    if admin:
        swapped = _json({"type": "object", "properties": {"artefact": text}})
        paths["/admin/swap"] = {"post": {"summary": "Serve another artefact of the same folder of artefacts, or the same one read again.",
                                         "security": [{"token": []}], "requestBody": {"content": swapped},
                                         "responses": _answers(_json({"type": "object"}), 401, 409, 422)}}
        paths["/admin/rollback"] = {"post": {"summary": "Serve the artefact of before.", "security": [{"token": []}],
                                             "responses": _answers(_json({"type": "object"}), 401, 409)}}
    return {"openapi": "3.1.0", "info": {"title": f"fourfold serve: {about['name']}", "version": str(about["version"])}, "paths": paths,
            **({"components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}} if admin else {})}


def page(described: dict[str, object]) -> str:
    """The document as one page of HTML: no script, no font, nothing from elsewhere."""
    info, paths = described["info"], described["paths"]
    assert isinstance(info, dict) and isinstance(paths, dict)
    parts = []
    for path, methods in paths.items():
        for method, told in methods.items():
            parts.append(f"<section><h2><b>{method.upper()}</b> <code>{html.escape(path)}</code></h2><p>{html.escape(told['summary'])}</p>")
            if "requestBody" in told:
                content = told["requestBody"]["content"]["application/json"]
                parts.append(f"<h3>Body</h3><pre>{html.escape(json.dumps(content['schema'], indent=1))}</pre>")
                if "example" in content:
                    said = html.escape(json.dumps(content["example"]))
                    call = f"curl -s localhost:PORT{html.escape(path)} -H 'content-type: application/json'"
                    parts.append(f"<h3>Try it</h3><pre>{call} -d '{said}'</pre>")
            rows = "".join(f"<tr><td>{code}<td>{html.escape(answer['description'])}" for code, answer in told["responses"].items())
            parts.append(f"<h3>Answers</h3><table>{rows}</table></section>")
    title = html.escape(str(info["title"]))
    style = ("body{font:15px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1c2733}pre{background:#f3f5f7;"
             "padding:.7rem;overflow:auto}section{border-top:1px solid #cfd6dd}h3{margin:.6rem 0 .2rem;font-size:1em}td{padding:.1rem .8rem .1rem 0}"
             "@media(prefers-color-scheme:dark){body{background:#12181f;color:#dbe3ea}pre{background:#1d2630}section{border-color:#33414f}}")
    return (f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>{title}</title>"
            f"<style>{style}</style><h1>{title}</h1><p>Version {html.escape(str(info['version']))}. "
            f"<a href=openapi.json>openapi.json</a></p>{''.join(parts)}</html>")
