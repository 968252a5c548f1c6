"""`models.toml`: the upstreams, the server, and how a policy is served.

    [models.small]                       # the name that the policy knows
    base_url = "http://127.0.0.1:9001/v1"
    upstream = "llama-3.1-8b"            # the name that the upstream knows
    api_key = "env:SMALL_KEY"            # or "file:secrets/small"; never the key itself
    price_input = 0.05                   # US$ per million tokens
    price_output = 0.10

Every table and key is optional but `[models.NAME]` with its `base_url`. An unknown key is an error,
since it is a slip of the pen that would otherwise be served.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pointsman.errors import InputError
from pointsman.serve.tables import mapping, table


@dataclass(frozen=True)
class Model:
    """One upstream model.

    Args:
        base_url: of the OpenAI-compatible API, such as "https://api.example.com/v1".
        api_key: "env:NAME" or "file:PATH", or None for an upstream that asks for none.
        upstream: name of the model there; None: the same as here.
        price_input: US$ per million prompt tokens.
        price_cached_input: of those that came from the upstream's cache; None: `price_input`.
        price_output: US$ per million tokens of the answer.
        vision: takes image parts.
        audio: takes audio parts.
        tools: takes tools.
        context: tokens of prompt and answer together, or None for no limit.
        max_output: tokens that an answer is taken to have at most where the request sets no limit;
            money is set aside for so many.
        include_usage: the upstream knows `stream_options.include_usage`.
        connect_seconds: to open a connection.
        first_seconds: from the request to the first byte of the answer's body.
        idle_seconds: between two pieces of an answer.
        total_seconds: for the whole answer.
        retries: further attempts on this model after one that failed before the first byte.
        max_concurrency: requests at once.
        queue: requests that may wait beside; more are turned away.
        queue_seconds: that one may wait.
        breaker_failures: in a row, after which the model is left alone.
        breaker_seconds: for which it is, doubled each time it fails again.
    """

    base_url: str
    api_key: str | None = None
    upstream: str | None = None
    price_input: float = 0.0
    price_cached_input: float | None = None
    price_output: float = 0.0
    vision: bool = False
    audio: bool = False
    tools: bool = True
    context: int | None = None
    max_output: int = 4096
    include_usage: bool = True
    connect_seconds: float = 5.0
    first_seconds: float = 120.0
    idle_seconds: float = 60.0
    total_seconds: float = 900.0
    retries: int = 2
    max_concurrency: int = 64
    queue: int = 256
    queue_seconds: float = 10.0
    breaker_failures: int = 5
    breaker_seconds: float = 5.0


@dataclass(frozen=True)
class Server:
    """How the gateway listens, and what it refuses.

    Args:
        host: address to bind to; beyond loopback only with `keys`.
        port: to bind to.
        hosts: values of the Host header that are answered while no keys are asked for, beside
            those of the loopback; it keeps web pages from reaching a gateway on their reader's
            machine by a name of their own.
        keys: every request needs one (`pointsman keys add`).
        open_metrics: /metrics and /status need none.
        store: where keys, ledger and served log are; a relative path is one beside this file.
        body_limit: bytes of a request's body.
        answer_limit: bytes of an answer that has to be read whole before it is passed on.
        header_limit: bytes of a request's line and headers.
        header_seconds: in which they must arrive.
        body_seconds: in which the body must.
        write_seconds: after which a client that does not read its answer is left.
        max_requests: at once; more are turned away.
        guesses_per_minute: wrong keys from one address, after which it is turned away for a while.
        shutdown_seconds: for which streams may go on after the signal to stop.
        log_text: the served log keeps the text of every query.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    hosts: tuple[str, ...] = ()
    keys: bool = False
    open_metrics: bool = False
    store: str = "sqlite:///pointsman.db"
    body_limit: int = 20_000_000
    answer_limit: int = 64_000_000
    header_limit: int = 65_536
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    write_seconds: float = 60.0
    max_requests: int = 1000
    guesses_per_minute: int = 20
    shutdown_seconds: float = 300.0
    log_text: bool = False


@dataclass(frozen=True)
class Serving:
    """How a policy is served.

    Args:
        point: of requests for "pointsman" without a point.
        floor: the point below which pacing never goes.
        pace: US$ per `pace_period` to spread evenly over requests without a point of their own, or
            None.
        pace_period: "hour", "day" or "month" (30 days).
        pace_keys: spread the budget of each key that has one in the same way.
        fall_back: where feedback says that the certificate does not hold, requests for the
            certified point go to the reference model.
        explore: share of the requests for points that go to a model drawn evenly, so that the
            served log knows of all of them; never those for the certified point, nor of keys with
            a floor.
        explore_certified: those for the certified point too, whose promise is then without them.
        online: serve the point "online", where a bandit chooses that starts from the policy's
            predictions and learns from feedback; see `pointsman.serve.online`.
    """

    point: str = "certified"
    floor: str | None = None
    pace: float | None = None
    pace_period: Literal["hour", "day", "month"] = "day"
    pace_keys: bool = False
    fall_back: bool = True
    explore: float = 0.0
    explore_certified: bool = False
    online: Literal["thompson", "ucb"] | None = None


@dataclass(frozen=True)
class Signal:
    """How something is known about an answer before it is given, see `pointsman.serve.signals`.

    Args:
        kind: "logprobs": the log-probabilities of the answer's tokens; "samples": the agreement of
            further answers; "verifier": what another model says of it.
        statistic: of log-probabilities: "mean", "least" or "margin".
        samples: answers in all.
        temperature: of the further ones.
        model: the verifier, one of the models.
        prompt: for the verifier, with {question} and {answer} in it.
    """

    kind: Literal["logprobs", "samples", "verifier"]
    statistic: Literal["mean", "least", "margin"] = "mean"
    samples: int = 3
    temperature: float = 0.7
    model: str | None = None
    prompt: str = (
        "Question:\n{question}\n\nProposed answer:\n{answer}\n\nHow likely is the proposed answer "
        "right? Reply with one number from 0 to 1 and nothing else."
    )


@dataclass(frozen=True)
class Config:
    """All of `models.toml`.

    Args:
        models: name to upstream.
        server: see `Server`.
        policy: see `Serving`.
        signals: name, as the policy knows it, to how it is obtained.
        folder: of the file, from which relative paths are meant.
    """

    models: Mapping[str, Model]
    server: Server = field(default_factory=Server)
    policy: Serving = field(default_factory=Serving)
    signals: Mapping[str, Signal] = field(default_factory=dict)
    folder: Path = Path()


def read_config(path: Path) -> Config:
    """Read `models.toml`.

    Raises:
        InputError: it is not there, no TOML, or something in it breaks a rule.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML file: {error}") from None
    return config_from(tables, path.parent, str(path))


def config_from(tables: Mapping[str, Any], folder: Path, name: str = "models.toml") -> Config:
    """The same from tables that are read already.

    Raises:
        InputError: something in them breaks a rule.
    """
    known = ("models", "server", "policy", "signals")
    if unknown := sorted(set(tables) - set(known)):
        raise InputError(f"{name}: tables are {', '.join(known)}, got [{unknown[0]}]")
    models = {
        each: table(Model, values, f"{name} [models.{each}]")
        for each, values in mapping(tables.get("models", {}), f"{name} [models]").items()
    }
    if not models:
        raise InputError(f"{name} names no model: write a table [models.NAME] with its base_url")
    signals = {
        each: table(Signal, values, f"{name} [signals.{each}]")
        for each, values in mapping(tables.get("signals", {}), f"{name} [signals]").items()
    }
    config = Config(
        models,
        table(Server, tables.get("server", {}), f"{name} [server]"),
        table(Serving, tables.get("policy", {}), f"{name} [policy]"),
        signals,
        folder,
    )
    _check(config, name)
    return config


def secret(reference: str | None, folder: Path) -> str | None:
    """The key that "env:NAME" or "file:PATH" stands for.

    Raises:
        InputError: there is no such variable or file, or it is empty or no single line.
    """
    if reference is None:
        return None
    kind, _, rest = reference.partition(":")
    if kind == "env" and rest:
        found = os.environ.get(rest, "")
    elif kind == "file" and rest:
        try:
            found = (folder / rest).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            found = ""
    else:
        raise InputError('api_key must be "env:NAME" or "file:PATH", never the key itself')
    found = found.strip()
    if not found or not found.isascii() or not found.isprintable():
        raise InputError(f"api_key {reference!r} holds no key: set it, as one line of ASCII")
    return found


def _check(config: Config, name: str) -> None:
    for each, model in config.models.items():
        parts = urlsplit(model.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"{name} [models.{each}]: base_url must be an http or https address, got "
                f"{model.base_url!r}"
            )
        if parts.username or parts.query or parts.fragment or not model.base_url.isprintable():
            raise InputError(
                f"{name} [models.{each}]: base_url must hold host and path alone: give the key "
                "as api_key"
            )
        if each.startswith("pointsman"):
            raise InputError(f"{name}: the name {each!r} is kept for points of the policy")
        secret(model.api_key, config.folder)
    if config.policy.explore > 1:
        raise InputError(
            f"{name} [policy]: explore is a share from 0 to 1, got {config.policy.explore:g}"
        )
    for each, signal in config.signals.items():
        if signal.kind == "verifier" and signal.model not in config.models:
            raise InputError(
                f"{name} [signals.{each}]: model must be one of {', '.join(config.models)}, got "
                f"{signal.model!r}"
            )
        if signal.kind == "samples" and not 2 <= signal.samples <= 32:
            raise InputError(
                f"{name} [signals.{each}]: samples must be from 2 to 32, got {signal.samples}"
            )
        if "{question}" not in signal.prompt or "{answer}" not in signal.prompt:
            raise InputError(
                f"{name} [signals.{each}]: the prompt needs {{question}} and {{answer}}"
            )
