"""Policy and configuration read from their files, and read again when these change.

Requests that are under way finish with what they started with. What cannot be read, or does not
fit, is reported and changes nothing.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pointsman.errors import InputError, PointsmanError
from pointsman.pool.policy import PoolPolicy
from pointsman.pool.policy_file import place_of
from pointsman.serve.config import Config, read_config
from pointsman.serve.gateway import Gateway, Generation, is_loopback
from pointsman.serve.store import StoreError

log = logging.getLogger("pointsman.serve")

SECONDS = 1.0  # between two looks at the files


@dataclass(frozen=True)
class Source:
    """Where a generation is read from.

    Args:
        policy: file, or folder that holds it.
        models: `models.toml`.
        host: instead of the one in it.
        port: instead of the one in it.
        store: instead of the one in it.
        keys: every request needs one, whatever it says.
    """

    policy: Path
    models: Path
    host: str | None = None
    port: int | None = None
    store: str | None = None
    keys: bool = False

    def config(self) -> Config:
        """The configuration.

        Raises:
            InputError: it breaks a rule; one is that a server that is reached from other machines
                asks for keys.
        """
        config = read_config(self.models)
        given: dict[str, Any] = {"host": self.host, "port": self.port, "store": self.store}
        server = replace(config.server, **{k: v for k, v in given.items() if v is not None})
        if self.keys:
            server = replace(server, keys=True)
        if not server.keys and not is_loopback(server.host):
            raise InputError(
                f"{server.host} is reached from other machines, and without keys anybody there "
                "could spend your money: set keys = true under [server] or --keys, and make some "
                "with `pointsman keys add`"
            )
        return replace(config, server=replace(server, store=self._store(server.store)))

    def generation(self, before: Generation | None = None) -> Generation:
        """Policy and configuration as they are now.

        Raises:
            PointsmanError: they cannot be read, or do not fit each other.
        """
        return Generation(PoolPolicy.load(self.policy), self.config(), before)

    def stamp(self) -> tuple[object, ...]:
        """Changes whenever one of the files does."""
        found: list[object] = []
        for path in (place_of(self.policy), self.models):
            try:
                about = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((about.st_mtime_ns, about.st_size, about.st_ino))
        return tuple(found)

    def _store(self, url: str) -> str:
        """The URL with a relative path meant from the folder of `models.toml`."""
        kind, _, path = url.partition(":///")
        if kind != "sqlite" or not path or path.startswith("/"):
            return url
        return f"sqlite:///{self.models.parent.resolve() / path}"


async def reload(gateway: Gateway, source: Source) -> bool:
    """Read everything anew, and serve by it if it is sound; whether it was."""
    try:
        made = await asyncio.to_thread(source.generation, gateway.generation)
    except PointsmanError as error:
        log.error("not reloaded, the old policy goes on: %s", error)
        return False
    old = gateway.generation.config.server
    with suppress(StoreError):  # what is known of this policy comes later then
        await gateway.sync(made)
    gateway.replace(made)
    for name in ("host", "port", "store"):
        if getattr(old, name) != getattr(made.config.server, name):
            log.warning("a changed %s takes effect when the server is started again", name)
    log.info("reloaded %s and %s", source.policy, source.models)
    return True


async def watch(
    gateway: Gateway,
    source: Source,
    asked: asyncio.Event,
    seconds: float = SECONDS,
    done: Callable[[bool], None] = lambda sound: None,
) -> None:
    """Reload when a file changed and has been left alone since, or when `asked` is set; for ever.

    Args:
        gateway: to reload.
        source: its files.
        asked: set to reload at once.
        seconds: between two looks.
        done: told of every reload, whether it was sound.
    """
    served = seen = source.stamp()
    while True:
        try:
            await asyncio.wait_for(asked.wait(), seconds)
        except TimeoutError:
            now = source.stamp()
            changed, steady = now != served, now == seen
            seen = now
            if not (changed and steady):
                continue
        asked.clear()
        served = seen = source.stamp()
        done(await reload(gateway, source))
