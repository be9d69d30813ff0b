"""The OpenAPI document of one service, with who may call each operation and the shape of errors."""

from typing import Any, Final

import msgspec
from litestar import Litestar, Request
from litestar.openapi.plugins import JsonRenderPlugin

from shared.http.callers import NEEDS_IDENTITY, Caller, routes

PATH: Final = "/ops/schema/openapi.json"

ERROR_SCHEMA: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "details", "timestamp", "request_id"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "details": {"oneOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}}]},
                "timestamp": {"type": "string", "format": "date-time"},
                "request_id": {"type": "string"},
            },
        }
    },
}
SECURITY_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key (ob_...) or a JWT"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def document(app: Litestar) -> dict[str, Any]:
    """Return the app's OpenAPI document."""
    return _complete(app, app.openapi_schema.to_schema())


class Document(JsonRenderPlugin):
    """Serves the document."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the JSON."""
        return msgspec.json.encode(_complete(request.app, openapi_schema), enc_hook=str)


def _complete(app: Litestar, schema: dict[str, Any]) -> dict[str, Any]:
    error = {
        "description": "An error",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    paths: dict[str, Any] = {path: dict(item) for path, item in schema.get("paths", {}).items()}
    for method, path, handler in routes(app):
        operation = paths.get(path, {}).get(method.lower())
        if operation is None:
            continue
        caller: Caller = handler.opt["caller"]
        responses = {code: answer for code, answer in operation["responses"].items() if code != "400"}
        paths[path][method.lower()] = {
            **operation,
            "responses": {**responses, "default": error},
            "x-caller": str(caller),
            "security": [{name: []} for name in SECURITY_SCHEMES] if caller in NEEDS_IDENTITY else [],
        }
    components: dict[str, Any] = dict(schema.get("components", {}))
    components["schemas"] = {**components.get("schemas", {}), "Error": ERROR_SCHEMA}
    components["securitySchemes"] = SECURITY_SCHEMES
    return {**schema, "paths": paths, "components": components}
