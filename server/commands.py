"""The command `stepdial serve`. Nothing heavy is imported before the arguments have been read."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource

from server.settings import Settings

if TYPE_CHECKING:
    from diffusion.family import Family
    from server.scheduler import Device


def serve(arguments: Sequence[str] | None = None) -> int:
    """Serve a family until told to stop; arguments as on the command line, default sys.argv's.

    Returns the exit status: 0 after an orderly end, 1 when the family is refused or the device is lost, 2 for a wrong
    argument.
    """
    source: CliSettingsSource = CliSettingsSource(Settings, cli_prog_name="stepdial serve")
    try:
        settings = CliApp.run(
            Settings,
            cli_args=list(sys.argv[1:] if arguments is None else arguments),
            cli_settings_source=source,
        )
    except ValidationError as error:
        for item in error.errors():
            print(f"stepdial serve: {item['loc'][0]}: {item['msg']}; --help tells more", file=sys.stderr)
        return 2
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    from diffusion.family import FamilyError, open_family
    from server.engine import Engine, choose_device

    try:
        family = open_family(settings.family)
    except FamilyError as error:
        print(f"stepdial serve: {error}", file=sys.stderr)
        return 1
    return run(settings, family, Engine(family, device=choose_device(settings.device), max_wave=settings.max_wave))


def run(settings: Settings, family: Family, device: Device) -> int:
    """Serve a family that is open, drawn by this device. Returns the exit status as `serve` does."""
    import uvicorn

    from server.app import create_app
    from server.ending import DrainingServer, leave_hung_threads

    lost = False

    def stop() -> None:
        nonlocal lost
        lost = server.should_exit = True

    app = create_app(settings, family, device, stop=stop)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        log_config=None,  # one format for all, set above
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_timeout_seconds,
    )
    server = DrainingServer(config, drain=app.state.drain, seconds=settings.shutdown_timeout_seconds)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn handles it while it runs, and repeats it when it is done
    try:
        server.run()
    except KeyboardInterrupt:
        pass  # repeated by uvicorn likewise
    status = 1 if lost or not server.started else 0
    leave_hung_threads(status)
    return status
