"""What people and machines see of a gateway: metrics, log, status page; and what siblings do.

One `Observer` belongs to one process. Its `observe` is called with every request that has ended,
its endpoints answer /metrics and /status, and `run` tells siblings through the store how it is.

    observer = Observer(JsonLog(text=config.server.log_text))
    gateway = Gateway(generation, store, observe=observer.observe)
    Route("/metrics", Simple(gateway, observer.metrics, open))
    publishing = asyncio.create_task(observer.run(gateway))   # to be cancelled at the end
"""

import asyncio
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from pointsman.serve.logs import JsonLog
from pointsman.serve.metrics import CONTENT_TYPE, Metrics, merge
from pointsman.serve.status import POLICY, page, snapshot, status
from pointsman.serve.store import StoreError
from pointsman.serve.store.records import Row

if TYPE_CHECKING:
    from pointsman.serve.client import Client
    from pointsman.serve.gateway import Exchange, Gateway

EVERY = 5.0  # seconds between two publications


class Observer:
    """Metrics and log of one process.

    Args:
        log: to write to.
        metrics: to count in.
    """

    def __init__(self, log: JsonLog | None = None, metrics: Metrics | None = None) -> None:
        self.log = JsonLog() if log is None else log
        self._metrics = Metrics() if metrics is None else metrics

    def observe(self, exchange: "Exchange") -> None:
        """A request has ended: count it, and write it down."""
        seconds = time.perf_counter() - exchange.began
        plan, usage, bill = exchange.plan, exchange.usage, exchange.bill
        cost = 0.0 if bill is None else bill.spent
        tokens = (
            {}
            if usage is None
            else {"prompt": usage.prompt, "cached": usage.cached, "answer": usage.answer}
        )
        answered = exchange.model is not None and exchange.status < 400
        quality = plan.quality if plan is not None and answered else None
        self._metrics.request(
            model=exchange.model,
            point=None if plan is None else plan.point,
            status=exchange.status,
            seconds=seconds,
            decide_seconds=exchange.decide_seconds,
            cost=cost,
            tokens=tokens,
            predicted_quality=quality,
            error=exchange.error,
        )
        self.log.write(
            "request",
            level="info" if exchange.status < 500 else "warning",
            id=exchange.id,
            status=exchange.status,
            error=exchange.error,
            key=None if exchange.key is None else exchange.key.id,
            point=None if plan is None else plan.point,
            model=exchange.model,
            why=None if plan is None else plan.why,
            predicted_quality=quality,
            cost_usd=cost,
            seconds=seconds,
            decide_seconds=exchange.decide_seconds,
            stream=None if exchange.request is None else exchange.request.stream,
            query=None if exchange.request is None else exchange.request.query,
            **{f"{kind}_tokens": count for kind, count in tokens.items()},
        )

    def feedback(self, row: Row) -> None:
        """A served answer was judged."""
        self._metrics.feedback(row["model"], row["quality"])
        self.log.write("feedback", id=row["id"], model=row["model"], quality=row["quality"])

    async def metrics(self, gateway: "Gateway", client: "Client", request: Request) -> Response:
        """GET /metrics: of all processes, or with ?own of this one alone."""
        texts = [(gateway.store.process.name, self._text(gateway))]
        if "own" not in request.query_params:
            others = await gateway.store.processes()
            own = gateway.store.process.id
            texts += [(one.name, one.metrics) for one in others if one.id != own and one.metrics]
        return Response(merge(texts), media_type=CONTENT_TYPE)

    async def status(self, gateway: "Gateway", client: "Client", request: Request) -> Response:
        """GET /status: the page, or with "Accept: application/json" its content."""
        found = await status(gateway, request.scope.get("pointsman.key"))
        headers = {"cache-control": "no-store", "content-security-policy": POLICY}
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse(found, headers=headers)
        return HTMLResponse(page(found), headers=headers)

    async def run(self, gateway: "Gateway") -> None:
        """Publish how this process is, until cancelled."""
        while True:
            store = gateway.store
            store.publish(json.dumps(snapshot(gateway)), self._text(gateway))
            with suppress(StoreError):  # it is said by the requests that need the store
                await store.beat()
            await asyncio.sleep(EVERY)

    def _text(self, gateway: "Gateway") -> str:
        self._metrics.state(snapshot(gateway))
        return self._metrics.text()
