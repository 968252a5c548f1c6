"""`pointsman serve POLICY`: an OpenAI-compatible endpoint that routes by a saved policy."""

from pathlib import Path

import click

from pointsman.errors import InputError

EXISTING = click.Path(exists=True, path_type=Path)


@click.command("serve")
@click.argument("policy", type=EXISTING)
@click.option(
    "--models",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The upstream models and how to serve, as a TOML file.",
)
@click.option("--host", help="Address to bind to.  [default: of the file, or 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="[default: of the file, or 8080]")
@click.option("--keys", is_flag=True, help="Every request needs a key of `pointsman keys add`.")
@click.option("--store", help="Keys, ledger and log: sqlite:///PATH or postgresql://...")
@click.option("--workers", type=click.IntRange(1, 64), default=1, help="Processes on the port.")
def command(
    policy: Path,
    models: Path,
    host: str | None,
    port: int | None,
    keys: bool,
    store: str | None,
    workers: int,
) -> None:
    """Serve a policy of `pointsman compare LOG` in front of its models.

    POLICY is the file policy.safetensors or the folder that holds it. The endpoint speaks OpenAI's
    protocol: give clients http://HOST:PORT/v1 as their base URL, and "pointsman",
    "pointsman:cheap", "pointsman:certified" or a model's own name as the model.
    """
    from pointsman.serve.reload import Source
    from pointsman.serve.server import bind, serve

    source = Source(policy, models, host, port, store, keys)
    generation = source.generation()  # what is wrong shows before anything is bound
    server = generation.config.server
    if workers > 1 and server.store == "memory:":
        raise InputError("several processes need a store that they share: give --store")
    listener = bind(server.host, server.port)
    name = f"[{server.host}]" if ":" in server.host else server.host
    routed = generation.policy
    click.echo(f"Serving {policy} at http://{name}:{listener.getsockname()[1]}/v1")
    click.echo(routed.words())
    click.echo(f"Keys: {'needed' if server.keys else 'none'}. Stop with Ctrl+C.")
    code = serve(source, listener, workers)
    if code:
        raise click.exceptions.Exit(code)
