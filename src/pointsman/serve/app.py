"""The ASGI application: routes, and errors in OpenAI's shape."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pointsman.serve.chat import ChatCompletions, check_type
from pointsman.serve.client import Client, ClientGoneError, Receive, Scope, Send
from pointsman.serve.gateway import Gateway
from pointsman.serve.observing import Observer
from pointsman.serve.refusal import RefusalError, fault, overloaded
from pointsman.serve.store import StoreError

COMPLETIONS = "/v1/chat/completions"

Endpoint = Callable[[Gateway, Client, Request], Awaitable[Response]]


class Simple:
    """An endpoint that reads little and answers at once.

    Args:
        gateway: whose requests these are.
        endpoint: gives the answer.
        open: whether it needs no key.
    """

    def __init__(
        self, gateway: Gateway, endpoint: Endpoint, open: Callable[[], bool] = lambda: False
    ) -> None:
        self.gateway, self.endpoint, self.open = gateway, endpoint, open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        client = Client(scope, receive, send)
        try:
            if not self.open():
                scope["pointsman.key"] = await self.gateway.identify(client)
            response = await self.endpoint(self.gateway, client, Request(scope, receive))
        except RefusalError as refusal:
            await client.refuse(refusal)
        except StoreError as error:
            await client.refuse(overloaded(f"the store cannot be reached: {error}"))
        except ClientGoneError:
            pass
        else:
            await response(scope, receive, send)


class Application:
    """Sends completions straight to their endpoint, and all else through Starlette's routes.

    Starlette wraps the endpoint's `send` twice, which costs something at every piece of a stream.

    Args:
        completions: the endpoint.
        others: all routes, that of completions too, so that it says which methods it takes.
    """

    def __init__(self, completions: ChatCompletions, others: Starlette) -> None:
        self.completions, self.others = completions, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope.get("path") == COMPLETIONS and scope.get("method") == "POST":
            await self.completions(scope, receive, send)
        else:
            await self.others(scope, receive, send)


def make_app(gateway: Gateway, observer: Observer | None = None) -> Application:
    """The application of a gateway; without an observer it has no /metrics and no /status."""
    completions = ChatCompletions(gateway)

    def always() -> bool:
        return True

    def measured() -> bool:
        return gateway.generation.config.server.open_metrics

    post, get = ["POST"], ["GET"]
    routes = [
        Route(COMPLETIONS, completions, methods=post),
        Route("/v1/models", Simple(gateway, _models), methods=get),
        Route("/v1/models/{name:path}", Simple(gateway, _model), methods=get),
        Route("/v1/feedback", Simple(gateway, _feedback), methods=post),
        Route("/health", Simple(gateway, _health, always), methods=get),
        Route("/openapi.json", Simple(gateway, _openapi, always), methods=get),
    ]
    if observer is not None:
        routes += [
            Route("/metrics", Simple(gateway, observer.metrics, measured), methods=get),
            Route("/status", Simple(gateway, observer.status, measured), methods=get),
        ]
    handlers = {HTTPException: _http_error, Exception: _fault}
    return Application(completions, Starlette(routes=routes, exception_handlers=handlers))


async def _models(gateway: Gateway, client: Client, request: Request) -> Response:
    """What `model` may be."""
    key = request.scope["pointsman.key"]
    names = gateway.generation.decider.points(key)
    return JSONResponse({"object": "list", "data": [_entry(gateway, name) for name in names]})


async def _model(gateway: Gateway, client: Client, request: Request) -> Response:
    """One of them."""
    name = request.path_params["name"]
    if name not in gateway.generation.decider.points(request.scope["pointsman.key"]):
        raise RefusalError(404, f"there is no model {name[:100]!r}", code="model_not_found")
    return JSONResponse(_entry(gateway, name))


def _entry(gateway: Gateway, name: str) -> dict[str, object]:
    owner = name if name in gateway.generation.config.models else "pointsman"
    return {"id": name, "object": "model", "created": int(gateway.began), "owned_by": owner}


async def _feedback(gateway: Gateway, client: Client, request: Request) -> Response:
    """How good a served answer was."""
    server = gateway.generation.config.server
    check_type(client.header(b"content-type"))
    try:
        said = json.loads(await client.body(min(server.body_limit, 65_536), server.body_seconds))
    except (ValueError, RecursionError):
        raise RefusalError(400, "the body must be a JSON object", code="invalid_json") from None
    said = said if isinstance(said, dict) else {}
    which, quality = said.get("id"), said.get("quality")
    if not isinstance(which, str) or not which.isascii() or not 0 < len(which) <= 200:
        raise RefusalError(400, "id must be that of a request", param="id")
    if isinstance(quality, bool) or not isinstance(quality, int | float) or not 0 <= quality <= 1:
        raise RefusalError(400, "quality must be a number from 0 to 1", param="quality")
    if not await gateway.feedback(which, float(quality), request.scope["pointsman.key"]):
        raise RefusalError(404, f"there is no served request {which!r}", param="id")
    return JSONResponse({"id": which, "quality": quality})


async def _health(gateway: Gateway, client: Client, request: Request) -> Response:
    """That the process runs."""
    return JSONResponse({"status": "ok", "requests": gateway.requests})


async def _openapi(gateway: Gateway, client: Client, request: Request) -> Response:
    """The description of these endpoints."""
    path = Path(__file__).with_name("openapi.json")
    return Response(path.read_bytes(), media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    """No such path or method, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    words = {404: f"there is no {request.url.path[:100]}", 405: f"not by {request.method}"}
    refusal = RefusalError(error.status_code, words.get(error.status_code, str(error.detail)))
    return Response(refusal.body(), error.status_code, error.headers, "application/json")


async def _fault(request: Request, error: Exception) -> Response:
    """A fault of ours."""
    return Response(fault().body(), 500, media_type="application/json")
