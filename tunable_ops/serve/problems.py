"""Answers to requests that are refused: problem details as in RFC 9457, each with a code of its own."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

__all__ = ["CODES", "MEDIA_TYPE", "Problem", "responses"]

MEDIA_TYPE = "application/problem+json"

CODES: dict[str, tuple[int, str]] = {
    "empty": (400, "The body is empty"),
    "wrong_key": (401, "The API key is missing or wrong"),
    "unknown_model": (404, "There is no model of this name"),
    "not_found": (404, "There is nothing at this path"),
    "method_not_allowed": (405, "The path does not take this method"),
    "slow_upload": (408, "The upload took too long"),
    "too_many_bytes": (413, "The upload is too large"),
    "too_many_pixels": (413, "The picture is too large"),
    "not_a_picture": (415, "The body is not a picture of a format that is read"),
    "broken_picture": (422, "The picture cannot be decoded"),
    "unfit_picture": (422, "The network does not take this picture"),
    "unknown_parameter": (422, "Lambda names a parameter that the model does not have"),
    "outside_range": (422, "A value of lambda is outside its range"),
    "bad_lambda": (422, "Lambda cannot be read"),
    "bad_query": (422, "A part of the query is unknown or cannot be read"),
    "queue_full": (429, "Too many requests at one time"),
    "internal": (500, "The service has failed"),
    "no_memory": (503, "There is not enough memory now"),
    "timeout": (503, "The request took too long"),
}
"""Code to status and title."""


class Problem(Exception):
    """A request that is refused.

    Args:
        code: A name in `CODES`.
        detail: What was wrong with this request, in a sentence.
        headers: Further headers of the answer.
    """

    def __init__(self, code: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.headers = code, detail, headers

    @property
    def status(self) -> int:
        """The HTTP status."""
        return CODES[self.code][0]

    def response(self) -> JSONResponse:
        """Return the answer."""
        status, title = CODES[self.code]
        content = {"type": "about:blank", "title": title, "status": status, "code": self.code, "detail": self.detail}
        return JSONResponse(content, status, self.headers, MEDIA_TYPE)


SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string", "description": "What the code means"},
        "status": {"type": "integer", "description": "The HTTP status"},
        "code": {"type": "string", "enum": sorted(CODES)},
        "detail": {"type": "string", "description": "What was wrong with this request"},
    },
}


def responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the part of an OpenAPI operation that describes these problems, with an example of each."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, title = CODES[code]
        entry = found.setdefault(
            status,
            {
                "description": "",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        entry["description"] = "; ".join(filter(None, (entry["description"], title)))
        value = {"type": "about:blank", "title": title, "status": status, "code": code, "detail": title}
        entry["content"][MEDIA_TYPE]["examples"][code] = {"summary": title, "value": value}
    return found
