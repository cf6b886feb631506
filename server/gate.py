"""The gate: who is asking, whether they may, and how much they may ask for. It stands before everything that draws."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address, ip_address
from typing import Protocol

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import metrics
from server.dial import Wish
from server.errors import answer_for, failure_response
from server.failures import (
    DeviceLost,
    JobsFull,
    JobsUnavailable,
    KeyRefused,
    NotReady,
    Overloaded,
    RateLimited,
    ScopeMissing,
)
from server.journal import note
from server.keys import Key, Keyring
from server.keys import Scope as KeyScope
from server.limits import Allowance, Charge, Limit

OPEN = frozenset({"/", "/livez", "/readyz", "/metrics", "/models", "/frontier", "/openapi.json"})
"""Paths that need no key, besides the page's files: what a new route needs is a key, unless it is named here."""
TURNED_AWAY = (Overloaded, NotReady, DeviceLost, JobsFull, JobsUnavailable)
"""Failures that are no fault of the caller's, each a 503."""
PAGE = "/page/"
ADMIN = "/admin/"


class Ledger(Protocol):
    """Who has taken how much."""

    async def take(self, client: str, limit: Limit, evaluations: int) -> Allowance:
        """Take evaluations out of the client's bucket, if they are there."""

    async def give_back(self, client: str, limit: Limit, evaluations: int) -> None:
        """Put evaluations back that the client took and the server did not draw."""


@dataclass(slots=True)
class Caller:
    """Who is asking."""

    name: str
    """key:NAME, or the address."""
    limit: Limit | None
    """None where there is no rate limit."""
    ledger: Ledger
    allowance: Allowance | None = field(default=None)
    """What was left after the last charge."""


@dataclass(slots=True)
class Bill:
    """What a caller is charged for a wish."""

    charge: Charge | None = None
    """None where there is no rate limit."""
    waived: bool = False
    """Set in the block where it turns out that nothing is drawn for it."""


@asynccontextmanager
async def charged(request: Request, wish: Wish) -> AsyncIterator[Bill]:
    """Charge the caller for a wish that is drawn in the block, and tell the journal of it. Raises RateLimited.

    What the server turns away all the same is not charged: who comes back when Retry-After says is not refused for that.
    Whoever leaves, or is answered with another failure, gets back the evaluations that were not begun.
    """
    note(request, model=wish.model, steps=wish.steps)
    caller: Caller = request.scope["caller"]
    if caller.limit is None:
        yield Bill()
        return
    evaluations = sum(sample.evaluations for sample in wish.samples)
    caller.allowance = allowance = await caller.ledger.take(caller.name, caller.limit, evaluations)
    if allowance.wait_seconds:
        raise RateLimited(evaluations, allowance.limit.evaluations_per_minute, allowance.wait_seconds)
    bill, owed = Bill(Charge(caller.name, caller.limit)), 0
    try:
        yield bill
        owed = evaluations if bill.waived else 0
    except BaseException as error:
        owed = evaluations if isinstance(error, TURNED_AWAY) else evaluations - wish.meter.evaluations
        raise
    finally:
        if owed:
            await caller.ledger.give_back(caller.name, caller.limit, owed)
            full = max(0.0, allowance.full_seconds - owed * caller.limit.interval)
            caller.allowance = replace(allowance, full_seconds=full)


class Gate:
    """ASGI middleware that lets nobody by without a key, where keys are wanted, and says what is left of their rate."""

    def __init__(
        self, app: ASGIApp, *, keyring: Keyring | None, limit: Limit | None, ledger: Ledger, burst_seconds: float
    ):
        """limit is that of callers whose key has none of its own; burst_seconds goes with a key's own."""
        self._app, self._keyring = app, keyring
        self._limit, self._ledger, self._burst_seconds = limit, ledger, burst_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 403."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = Request(scope)
        try:
            key = self._key(scope)
        except (KeyRefused, ScopeMissing) as error:
            metrics.count_unread(scope["path"], answer_for(error).outcome)
            response = await failure_response(request, error)
            return await response(scope, receive, send)
        caller = scope["caller"] = self._caller(scope, key)
        if key:
            note(request, key=key.name)

        async def send_with_allowance(message: Message) -> None:
            if message["type"] == "http.response.start" and caller.allowance:
                MutableHeaders(scope=message).update(_headers(caller.allowance))
            await send(message)

        await self._app(scope, receive, send_with_allowance)

    def _key(self, scope: Scope) -> Key | None:
        """The key that the request carries; None where none is wanted. Raises KeyRefused, ScopeMissing."""
        path = scope["path"]
        if self._keyring is None or path in OPEN or path.startswith(PAGE):
            return None
        kind, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise KeyRefused("this server wants an API key: send the header Authorization: Bearer KEY", given=False)
        key = self._keyring.find(secret.strip())
        if key is None:
            raise KeyRefused("this API key is not known", given=True)
        needed: KeyScope = "admin" if path.startswith(ADMIN) else "draw"
        if needed not in key.scopes:
            raise ScopeMissing(f"the key {key.name!r} does not have the scope {needed!r}", needed)
        return key

    def _caller(self, scope: Scope, key: Key | None) -> Caller:
        if key and key.evaluations_per_minute:
            return Caller(f"key:{key.name}", Limit(key.evaluations_per_minute, self._burst_seconds), self._ledger)
        return Caller(f"key:{key.name}" if key else _address(scope), self._limit, self._ledger)


def _address(scope: Scope) -> str:
    """The caller's address; of IPv6 the network of 64 bits, since a client has as many addresses in it as it likes."""
    host = (scope.get("client") or ("unknown", 0))[0]
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address) and address.ipv4_mapped:  # all of IPv4 would be one network
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64" if address.version == 6 else host


def _headers(allowance: Allowance) -> dict[str, str]:
    """The RateLimit fields of the IETF's draft; the unit is evaluations."""
    limit = allowance.limit
    return {
        "RateLimit-Policy": f'"evaluations";q={limit.burst};w={math.ceil(limit.burst * limit.interval)}',
        "RateLimit": f'"evaluations";r={allowance.remaining};t={math.ceil(allowance.full_seconds)}',
    }
