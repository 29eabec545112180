"""`udever serve`: the service, from flags, UDEVER_* variables and a settings file.

Invariant: no secret is a flag, because `ps` shows flags.
Does not know: what a setting does (server/settings.py) or how requests are served (server/run.py).
"""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from udever.cli.options import Precision, Truncate, needing


def serve(
    *,
    model: Annotated[
        tuple[str, ...],
        Parameter(
            name=("--model", "-m"),
            negative=(),
            show_default=False,
            help="Built-in name, folder or hub id, or ID=that; repeatable. Default: udever-nano.",
        ),
    ] = (),
    host: Annotated[str | None, Parameter(help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[int | None, Parameter(help="Port to listen on; default: 8000.")] = None,
    config: Annotated[Path | None, Parameter(help="A TOML file with settings.")] = None,
    load: Annotated[
        str | None, Parameter(help="When models are loaded: start, or lazy (by the first request).")
    ] = None,
    precision: Annotated[Precision | None, Parameter(help="Number format of the weights; default: auto.")] = None,
    device: Annotated[str | None, Parameter(help="auto, cpu, cuda or cuda:N.")] = None,
    truncate: Annotated[
        Truncate | None, Parameter(help="What happens to over-long texts unless the request says; default: error.")
    ] = None,
    max_wait_seconds: Annotated[
        float | None, Parameter(help="Refuse requests that would wait longer for others; default: 30.")
    ] = None,
    grace_seconds: Annotated[int | None, Parameter(help="From SIGTERM to the end; default: 25.")] = None,
    log_level: Annotated[str | None, Parameter(help="debug, info, warning or error.")] = None,
    no_auth: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="Ask for no API keys; only on this machine's own address."),
    ] = False,
    insecure_no_auth: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Ask for no API keys, whoever can reach this machine.")
    ] = False,
    print_config: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Print the settings as TOML, secrets masked, and stop.")
    ] = False,
) -> None:
    """Serve embeddings over HTTP, as OpenAI does.

    Every flag is also a variable (UDEVER_PORT) and a line in the settings file (port = 8000); flags go first, then
    variables, then the file. The database and the pepper are no flags: UDEVER_DATABASE_URL, UDEVER_PEPPER.
    """
    with needing("server", what="the service"):
        from udever.server.settings import load_settings
    flags: dict[str, Any] = {
        "models": model or None,
        "host": host,
        "port": port,
        "config": config,
        "load": load,
        "precision": precision,
        "device": device,
        "truncate": truncate,
        "max_wait_seconds": max_wait_seconds,
        "grace_seconds": grace_seconds,
        "log_level": log_level,
        "auth": False if no_auth or insecure_no_auth else None,
        "insecure_no_auth": insecure_no_auth or None,
    }
    settings = load_settings(flags)
    if print_config:
        print(settings.as_toml(), end="")
        return
    with needing("server", what="the service"):
        from udever.server.run import serve as run
    run(settings)
