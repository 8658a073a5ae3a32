"""The application: what is asked for at which path, and what is answered."""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import nn

import tunable_ops
from tunable_ops.deploy.batching import Batcher
from tunable_ops.serve import pictures
from tunable_ops.serve.limits import Admission, Gone, Life, check_key, read_body
from tunable_ops.serve.metrics import CONTENT_TYPE, Metrics
from tunable_ops.serve.models import Served
from tunable_ops.serve.pictures import Output, Restorer
from tunable_ops.serve.problems import Problem
from tunable_ops.serve.schema import RESTORE, ModelList, RestoreQuery, Status, describe, problems
from tunable_ops.serve.settings import Settings

__all__ = ["create_app"]

_LOG = logging.getLogger("tunable_ops.serve")
_PATHS = ("/v1/restore", "/v1/models", "/healthz", "/metrics", "/openapi.json")
_HUNG_UP = 499  # nobody reads it; /metrics counts it


def create_app(models: Mapping[str, nn.Module | Served], settings: Settings | None = None) -> FastAPI:
    """Return the service as an ASGI application, for uvicorn or any other server.

    POST /v1/restore, GET /v1/models, /healthz, /metrics and /openapi.json, as docs/serve.md describes them. The threads
    that restore pictures start and end with the application's lifespan; at its end everything that was taken is
    finished.

    Args:
        models: The networks by the name that requests give: `TunableModel`s, or plain networks.
        settings: Limits; None: those of `Settings`.

    Raises:
        ValueError: No model, or one for pictures of neither 1 nor 3 channels.

    Example:
        >>> from tunable_ops import pretrained
        >>> create_app({"denoise": pretrained.load("denoise")}).title
        'tunable_ops'
    """
    if not models:
        raise ValueError("serve: models must hold at least one network; got none")
    served = {name: net if isinstance(net, Served) else Served(name, net) for name, net in models.items()}
    service = Service(served, settings or Settings())
    app = FastAPI(
        title="tunable_ops",
        version=tunable_ops.__version__,
        summary="Pictures through networks whose trade-offs are set per request",
        lifespan=lambda _: service.lifespan(),
        docs_url=None,  # their scripts come from other hosts
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(_Measured, metrics=service.metrics)
    app.add_exception_handler(Problem, service.refuse)
    app.add_exception_handler(RequestValidationError, service.refuse)
    app.add_exception_handler(HTTPException, service.refuse)
    app.add_exception_handler(Gone, service.refuse)
    app.add_exception_handler(Exception, service.refuse)
    key = [Depends(service.check_key)]
    app.add_api_route(
        "/v1/restore",
        service.restore,
        methods=["POST"],
        dependencies=key,
        response_class=Response,
        summary="Restore a picture",
        **RESTORE,
    )
    app.add_api_route(
        "/v1/models",
        service.list_models,
        methods=["GET"],
        dependencies=key,
        summary="List the models and their parameters",
        response_model=ModelList,
        responses=problems("wrong_key"),
    )
    app.add_api_route("/healthz", service.health, methods=["GET"], summary="Say that it runs", response_model=Status)
    app.add_api_route(
        "/metrics",
        service.show_metrics,
        methods=["GET"],
        dependencies=key,
        response_class=Response,
        summary="Metrics in Prometheus' text format",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems("wrong_key")},
    )
    describe(app, served, service.settings)
    return app


class Service:
    """What the paths share.

    Args:
        models: The networks by name.
        settings: Limits.
    """

    def __init__(self, models: Mapping[str, Served], settings: Settings) -> None:
        self.models, self.settings = dict(models), settings
        self.metrics = Metrics()
        self.admission = Admission(settings.queue, self.metrics.running.set)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Start the threads; at the end finish what was taken."""
        settings = self.settings
        warnings.filterwarnings("ignore", module="PIL")
        self.batcher = Batcher(
            settings.batch_wait_ms / 1000,
            settings.max_batch,
            settings.batch_pixels,
            measured=self._measured,
        )
        self.restorer = Restorer(settings, self.batcher)
        self.pool = ThreadPoolExecutor(settings.workers, "tunable-ops-pictures")
        try:
            yield
        finally:
            await asyncio.to_thread(self.pool.shutdown)
            await asyncio.to_thread(self.batcher.close)

    def _measured(self, model: Served, samples: int, seconds: float) -> None:
        self.metrics.batch.labels(model.name).observe(samples)
        self.metrics.batch_seconds.labels(model.name).observe(seconds)

    async def check_key(self, request: Request) -> None:
        """Check the API key, before anything else is looked at."""
        check_key(request, self.settings.api_key)

    async def restore(self, request: Request, query: Annotated[RestoreQuery, Query()]) -> Response:
        """Answer POST /v1/restore."""
        life, start = Life(self.settings.timeout), time.perf_counter()
        if query.model not in self.models:
            known = ", ".join(self.models)
            raise Problem("unknown_model", f"the models are {known}; got {query.model[:40]!r}")
        model = self.models[query.model]
        wanted = pictures.Request(model, model.parse(query.lam), query.format, query.quality, query.bits)
        self.admission.enter()
        computed = self.batcher.expect()
        work: Future[Output] | None = None
        try:
            content = await read_body(request, self.settings.max_bytes, min(self.settings.upload_timeout, life.left))
            received = time.perf_counter() - start
            work = self.pool.submit(self.restorer, content, wanted, life, computed)
            output = await _result(request, work, life)
        finally:
            computed()
            if work is None or work.done():
                self.admission.leave()
            else:  # a thread still has the picture in memory
                loop = asyncio.get_running_loop()
                work.add_done_callback(lambda _: loop.call_soon_threadsafe(self.admission.leave))
        for stage, seconds in {"receive": received, **output.seconds}.items():
            self.metrics.stage_seconds.labels(stage).observe(seconds)
        self.metrics.pixels.labels(model.name).inc(output.pixels)
        return Response(output.content, media_type=output.media_type, headers=_headers(model, output))

    async def list_models(self) -> dict[str, Any]:
        """Answer GET /v1/models."""
        return {"models": [model.describe() for model in self.models.values()]}

    async def health(self) -> dict[str, str]:
        """Answer GET /healthz."""
        return {"status": "ok"}

    async def show_metrics(self) -> Response:
        """Answer GET /metrics."""
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Answer a request that is refused, or that has failed."""
        if isinstance(error, Gone):
            return Response(status_code=_HUNG_UP)
        problem = _as_problem(error)
        if problem.code == "internal":
            _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
        self.metrics.refused.labels(problem.code).inc()
        return problem.response()


async def _result(request: Request, work: Future[Output], life: Life) -> Output:
    """Wait for a picture, for the end of its time, or for its client to hang up, whichever comes first.

    Raises:
        Gone, Problem: It was not ready; what has not started never does, and what has stops at the next tile.
    """
    waiting, hung_up = asyncio.wrap_future(work), asyncio.ensure_future(_hung_up(request))
    either: set[asyncio.Future[Any]] = {waiting, hung_up}
    try:
        done, _ = await asyncio.wait(either, timeout=life.left, return_when=asyncio.FIRST_COMPLETED)
        if waiting in done:
            return waiting.result()
        if hung_up in done:
            life.leave()
        work.cancel()
        life.check()
        raise life.timeout()
    finally:
        hung_up.cancel()


async def _hung_up(request: Request) -> None:
    """Return when the client hangs up; the body has been received."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _headers(model: Served, output: Output) -> dict[str, str]:
    headers = {"Server-Timing": ", ".join(f"{name};dur={1000 * s:.1f}" for name, s in output.seconds.items())}
    if model.spec is not None:
        pairs = zip(model.spec.names, output.lam, strict=True)
        headers["Tunable-Lambda"] = ",".join(f"{name}={value + 0.0:.6g}" for name, value in pairs)
    if output.notes:
        headers["Tunable-Notes"] = "; ".join(output.notes).encode("ascii", "replace").decode()
    return headers


def _as_problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return Problem("bad_query", "; ".join(_fault(fault) for fault in error.errors()))
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        code = "not_found" if error.status_code == 404 else "method_not_allowed"
        return Problem(code, f"the paths are {', '.join(_PATHS)}", dict(error.headers or {}) or None)
    return Problem("internal", "the service has failed; its log says why")


def _fault(fault: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in fault["loc"][1:])
    return f"{name[:40]!r}: {fault['msg']}" if name else str(fault["msg"])


class _Measured:
    """Counts and times all answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, path = time.perf_counter(), scope["path"] if scope["path"] in _PATHS else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(path, str(message["status"])).inc()
                self._metrics.seconds.labels(path).observe(time.perf_counter() - start)
            await send(message)

        await self._app(scope, receive, counted)
