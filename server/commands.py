"""The commands `stepdial serve` and `stepdial openapi`. Nothing heavy is imported before the arguments have been read."""

from __future__ import annotations

import errno
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource

from server import journal
from server.command_line import readable, told
from server.settings import Settings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from diffusion.family import Family
    from server.scheduler import Device


def serve(arguments: Sequence[str] | None = None) -> int:
    """Serve families until told to stop; arguments as on the command line, default sys.argv's.

    Returns the exit status: 0 after an orderly end, 1 when the family is refused or the device is lost, 2 for a wrong
    argument.
    """
    source = readable(CliSettingsSource(Settings, cli_prog_name="stepdial serve"))
    try:
        settings = CliApp.run(
            Settings,
            cli_args=list(sys.argv[1:] if arguments is None else arguments),
            cli_settings_source=source,
        )
    except ValidationError as error:
        for item in error.errors():
            print(f"stepdial serve: {told(item, Settings)}; --help tells more", file=sys.stderr)
        return 2
    journal.configure(settings.log_level, settings.log_format)
    if why := _cannot_listen(settings.host, settings.port):
        print(f"stepdial serve: port {settings.port} of {settings.host} cannot be had: {why}", file=sys.stderr)
        return 1

    from diffusion.allocator import keep_freed_memory
    from diffusion.family import FamilyError, open_family
    from server.engine import DeviceMissing, Engine, choose_device

    keep_freed_memory()
    try:
        device = choose_device(settings.device)
        families = [open_family(folder, settings.precision) for folder in settings.folders]
        if not families:
            raise FamilyError("there is no family in the folder that --families names")
    except (DeviceMissing, FamilyError) as error:
        print(f"stepdial serve: {error}", file=sys.stderr)
        return 1
    return run(settings, families, lambda family: Engine(family, device=device, max_wave=settings.max_wave))


def openapi(arguments: Sequence[str]) -> int:
    """Print the OpenAPI document, which is the same for every family. Returns the exit status as `serve` does."""
    if arguments:
        print("usage: stepdial openapi > docs/openapi.json\n\n" + str(openapi.__doc__).partition(".")[0] + ".")
        return 0 if arguments[0] in ("-h", "--help") else 2
    from diffusion.family import open_family
    from server.app import create_app
    from server.contract import document_text
    from server.engine import Engine, choose_device

    settings = Settings()
    families, device = [open_family(folder) for folder in settings.folders], choose_device("cpu")
    app = create_app(settings, families, lambda family: Engine(family, device=device, max_wave=1), stop=lambda: None)
    print(document_text(app), end="")
    return 0


def run(settings: Settings, families: Sequence[Family], make_device: Callable[[Family], Device]) -> int:
    """Serve families that are open, each drawn by the device made for it. Returns the exit status as `serve` does."""
    from server.app import create_app
    from server.ending import DrainingServer, leave_hung_threads
    from server.failures import FamilyConflict, MemoryExceeded
    from server.keys import KeysError

    lost = False

    def stop() -> None:
        nonlocal lost
        lost = server.should_exit = True

    try:
        app = create_app(settings, families, make_device, stop=stop)
    except (FamilyConflict, MemoryExceeded, KeysError) as error:
        print(f"stepdial serve: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"stepdial serve: admin_port {settings.admin_port} cannot be had: {error.strerror}", file=sys.stderr)
        return 1
    server = DrainingServer(
        _config(app, settings),
        leave=app.state.leave,
        drain=app.state.drain,
        delay=settings.shutdown_delay_seconds,
        seconds=settings.shutdown_timeout_seconds,
    )
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn handles it while it runs, and repeats it when it is done
    try:
        server.run()
    except KeyboardInterrupt:
        pass  # repeated by uvicorn likewise
    except SystemExit:
        pass  # uvicorn's way to say that it never started, the port being taken for instance, which is in the log
    status = 1 if lost or not server.started else 0
    leave_hung_threads(status)
    return status


def _cannot_listen(host: str, port: int) -> str | None:
    """Say why uvicorn could not listen there, before anything is loaded that takes seconds; None where it seems to be possible."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                tried.bind(address)
    except OSError as error:
        named = isinstance(error, socket.gaierror) or error.errno in (errno.EADDRINUSE, errno.EACCES)
        return error.strerror if named else None  # what else there is, an address of no interface, is uvicorn's to say
    return None


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """What uvicorn is told for the main port."""
    import uvicorn

    from server.connections import options

    return uvicorn.Config(
        app,
        **options(settings),
        host=settings.host,
        port=settings.port,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=[str(network) for network in settings.trusted_proxies],
        timeout_graceful_shutdown=settings.shutdown_timeout_seconds,
    )
