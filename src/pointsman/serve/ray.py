"""Replicas of the gateway on Ray Serve, behind its proxy, on one shared store.

    from ray import serve
    from pointsman.serve.ray import application

    serve.run(application("OUT/policy", "models.toml", replicas=2), name="pointsman")

Every replica is the same application that `pointsman serve` runs, in a process of its own, with its
own connections and breakers. What must be one for all is in the store: keys, budgets, rate limits,
ledger and served log. So replicas on several machines need PostgreSQL; on one machine SQLite will
do. Each replica reads policy and configuration from the paths given, which must be there on its
machine, and again when they change.

Ray's proxy stands where `pointsman serve` has its own sockets: host, port, and the limits on
headers and on slow clients are then Ray's, all else is ours. Ray cannot tell us whom its proxy is
open to, so keys are asked for unless it is said that only this machine reaches it.
"""

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pointsman.errors import InputError
from pointsman.serve.app import make_app
from pointsman.serve.client import Receive, Scope, Send
from pointsman.serve.gateway import Gateway
from pointsman.serve.logs import JsonLog
from pointsman.serve.observing import Observer
from pointsman.serve.reload import Source, watch
from pointsman.serve.store import open_store

if TYPE_CHECKING:
    from ray.serve import Application


def application(
    policy: str | Path,
    models: str | Path,
    *,
    store: str | None = None,
    replicas: int = 2,
    keys: bool = False,
    local: bool = False,
    **options: Any,
) -> "Application":
    """The gateway as a Ray Serve application, for `ray.serve.run`.

    Args:
        policy: file of `pointsman compare`, or the folder that holds it, on every machine.
        models: `models.toml`, on every machine.
        store: sqlite:///PATH or postgresql://..., instead of the one in the file.
        replicas: processes that answer.
        keys: every request needs one, whatever the file says.
        local: Ray's proxy is bound to the loopback, so that only this machine reaches it.
        options: more for `ray.serve.deployment`, such as `ray_actor_options`.

    Raises:
        InputError: ray is missing; no keys are asked for and it is not said to be local; several
            replicas without a store that they can share; or a file breaks a rule.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise InputError("replicas on Ray need it: pip install 'ray[serve]'") from error
    paths = Path(policy).absolute(), Path(models).absolute()
    source = Source(*paths, host="127.0.0.1", store=store, keys=keys)
    config = source.generation().config  # what is wrong shows before anything is started
    server = config.server
    if not server.keys and not local:
        raise InputError(
            "without keys anybody whom Ray's proxy is open to could spend your money: set keys = "
            "true under [server], or say local=True where it is bound to the loopback"
        )
    if server.store == "memory:" and replicas > 1:
        raise InputError(
            f"{replicas} replicas need a store that they share: give sqlite:/// or postgresql://"
        )

    def build() -> Replica:
        return Replica(source)

    settings: dict[str, Any] = {
        "name": "pointsman",
        "num_replicas": replicas,
        "max_ongoing_requests": server.max_requests,
        "graceful_shutdown_timeout_s": server.shutdown_seconds,
        **options,
    }
    deployed: Any = serve.deployment(serve.ingress(build)(), **settings)
    made: Application = deployed.bind()
    return made


class Replica:
    """The gateway as an ASGI application that opens and closes what it needs by itself.

    `pointsman serve` does this around the server; here the server is another's, and all that it
    tells us is when it starts and when it stops (the lifespan messages of ASGI).

    Args:
        source: of policy and configuration.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._app: Any = None
        self._open = AsyncExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            assert self._app is not None, "a request before the start"
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
        except Exception as error:
            await self._open.aclose()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._open.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        generation = self.source.generation()
        server = generation.config.server
        store = await open_store(server.store)
        self._open.push_async_callback(store.close)
        lines = JsonLog(text=server.log_text)
        observer = Observer(lines)
        logger = logging.getLogger("pointsman")
        logger.addHandler(lines.handler())
        gateway = Gateway(generation, store, observer.observe, observer.feedback)
        await gateway.sync()
        self._app = make_app(gateway, observer)
        watching = watch(gateway, self.source, asyncio.Event())
        for work in (watching, observer.run(gateway), gateway.run()):
            self._open.callback(asyncio.create_task(work).cancel)
