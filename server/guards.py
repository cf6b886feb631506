"""The guards: what every request passes before it comes to a route, on either port."""

from fastapi import FastAPI

from server.bodies import BodyLimit
from server.bugs import Bugs
from server.gate import Gate, Ledger
from server.head import HeadAsGet
from server.headers import SecurityHeaders
from server.journal import Journal
from server.keys import Keyring
from server.limits import Limit
from server.openai_errors import OpenAIErrors
from server.settings import Settings


def guard(app: FastAPI, settings: Settings, *, keyring: Keyring | None, limit: Limit | None, ledger: Ledger) -> None:
    """Put the guards in front of the app's routes; the last is the outermost."""
    app.add_middleware(Gate, keyring=keyring, limit=limit, ledger=ledger, burst_seconds=settings.burst_seconds)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, seconds=settings.receive_timeout_seconds)
    app.add_middleware(Bugs)
    app.add_middleware(OpenAIErrors)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Journal)
    app.add_middleware(HeadAsGet)
