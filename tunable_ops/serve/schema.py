"""What the service's OpenAPI document says, with examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tunable_ops.serve.models import Served
from tunable_ops.serve.pictures import MEDIA_TYPES
from tunable_ops.serve.problems import SCHEMA, responses
from tunable_ops.serve.settings import Settings

__all__ = ["RESTORE", "Model", "ModelList", "Parameter", "RestoreQuery", "Status", "describe", "problems"]

problems = responses

_REFUSED = (
    *("empty", "wrong_key", "unknown_model", "slow_upload", "too_many_bytes", "too_many_pixels", "not_a_picture"),
    *("broken_picture", "unfit_picture", "unknown_parameter", "outside_range", "bad_lambda", "bad_query", "queue_full"),
    *("internal", "no_memory", "timeout"),
)
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_HEADERS = {
    "Tunable-Lambda": ("Lambda as it was used, with the noise that was estimated", "sigma=25,texture=0.5"),
    "Tunable-Notes": ("What the format of the answer could not keep", "jpg has 8 bits: 16 are rounded"),
    "Server-Timing": ("Milliseconds of decode, restore and encode", "decode;dur=4.1, restore;dur=80.2, encode;dur=9.0"),
}

RESTORE: dict[str, Any] = {
    "description": "The body is a picture: PNG, JPEG, WebP or TIFF, 8 or 16 bits, grey or colour, with or without "
    "alpha, animated or not. Its content decides what it is, not Content-Type. The answer has its bits, alpha, colour "
    "profile and metadata. Requests of one size that come together share a call of the network, each with its own "
    "lambda.",
    "responses": {
        200: {
            "description": "The restored picture",
            "content": dict.fromkeys(MEDIA_TYPES.values(), _BINARY),
            "headers": {
                name: {"description": text, "schema": {"type": "string"}, "example": example}
                for name, (text, example) in _HEADERS.items()
            },
        },
        **responses(*_REFUSED),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": "The bytes of the picture",
            "content": dict.fromkeys((*MEDIA_TYPES.values(), "application/octet-stream"), _BINARY),
        }
    },
}
"""The description of POST /v1/restore."""


class RestoreQuery(BaseModel):
    """The query of POST /v1/restore."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(description="Name of a model, as GET /v1/models lists them", examples=["denoise"])]
    lam: Annotated[
        str | None,
        Field(
            description="Lambda by name, in the units that GET /v1/models lists; `auto` estimates the noise of the "
            "picture. What is left out has its default or, where lambda sums to one, shares the rest.",
            examples=["sigma=25,texture=0.5", "sigma=auto"],
            max_length=1000,
        ),
    ] = None
    format: Annotated[
        Literal["png", "jpg", "webp", "tiff"] | None,
        Field(description="Format of the answer; default: the picture's own if that is lossless, else png"),
    ] = None
    quality: Annotated[
        int | None, Field(ge=1, le=100, description="Of jpg (default 95) and webp (default: lossless)", examples=[90])
    ] = None
    bits: Annotated[
        Literal[8, 16] | None,
        BeforeValidator(lambda text: {"8": 8, "16": 16}.get(text, text) if isinstance(text, str) else text),
        Field(description="Bits per channel of png and tiff; default: the picture's"),
    ] = None


class Parameter(BaseModel):
    """One tuning parameter of a model."""

    name: str
    unit: str
    low: float
    high: float
    default: float


class Model(BaseModel):
    """A model."""

    name: str
    purpose: str | None
    scale: Annotated[int, Field(description="How many times as large the answer is, in height and in width")]
    domain: Annotated[str | None, Field(description='"box": each parameter moves by itself; "simplex": they sum to 1')]
    parameters: list[Parameter]
    batched: Annotated[bool, Field(description="Whether requests with different lambdas share a call")]


class ModelList(BaseModel):
    """The answer of GET /v1/models."""

    models: list[Model]

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "models": [
                    {
                        "name": "denoise",
                        "purpose": "removes white noise of a known strength",
                        "scale": 1,
                        "domain": "box",
                        "parameters": [
                            {"name": "sigma", "unit": "of 255", "low": 0.0, "high": 50.0, "default": 25.0},
                            {"name": "texture", "unit": "", "low": 0.0, "high": 1.0, "default": 0.0},
                        ],
                        "batched": True,
                    }
                ]
            }
        }
    )


class Status(BaseModel):
    """The answer of GET /healthz."""

    status: Annotated[str, Field(examples=["ok"])]


def describe(app: FastAPI, models: Mapping[str, Served], settings: Settings) -> None:
    """Give the application an OpenAPI document with its models, its limits and, if there is one, its key."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            _complete(made, models, settings)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _complete(document: dict[str, Any], models: Mapping[str, Served], settings: Settings) -> None:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas["Problem"] = SCHEMA
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which are not answered here
        schemas.pop(name, None)
    restore = document["paths"]["/v1/restore"]["post"]
    restore["description"] += (
        f" Limits: {settings.max_bytes} bytes, {settings.max_pixels} pixels, {settings.timeout:g} seconds, "
        f"{settings.queue} requests at one time."
    )
    for parameter in restore["parameters"]:
        if parameter["name"] == "model":
            parameter["schema"] = {"type": "string", "enum": list(models)}
            parameter["example"] = next(iter(models))
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if settings.api_key is not None and path != "/healthz":
                operation["security"] = [{"bearer": []}, {"header": []}]
            if settings.api_key is None:
                operation["responses"].pop("401", None)
    if settings.api_key is not None:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
