"""Administration: which families are loaded. Behind the scope `admin` of a key, or on a port of its own."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from server.contract import problems
from server.roster import Roster, Served


class LoadRequest(BaseModel):
    """Which family to load."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    folder: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """Name of its folder, directly below the one that the server was started with as --families."""


class LoadedFamily(BaseModel):
    """A family that is loaded, or coming or going."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    """What requests call `model`."""
    state: Literal["loading", "ready", "leaving"]
    memory_bytes: int
    """Size of its networks' weights in float32."""


class LoadedFamilies(BaseModel):
    """Every family that takes memory."""

    data: list[LoadedFamily]


def admin_routes(roster: Roster) -> APIRouter:
    """The routes that load and unload families while requests are drawn."""
    router = APIRouter(prefix="/admin", tags=["admin"])

    @router.get("/families", summary="The families that are loaded", responses=problems(401, 403))
    async def families() -> LoadedFamilies:
        return LoadedFamilies(data=[_tell(served) for served in roster])

    @router.post(
        "/families",
        status_code=201,
        summary="Load a family; the answer comes when it is ready",
        responses=problems(400, 401, 403, 408, 409, 413, 415, 422, 500, 507),
    )
    async def load(body: LoadRequest) -> LoadedFamily:
        return _tell(await roster.load(body.folder))

    @router.delete(
        "/families/{name}",
        status_code=204,
        summary="Unload a family; the answer comes when its last request was answered and its memory is free",
        responses=problems(401, 403, 404, 409, 422),
    )
    async def unload(name: str) -> None:
        await roster.unload(name)

    return router


def _tell(served: Served) -> LoadedFamily:
    return LoadedFamily(name=served.family.name, state=served.state, memory_bytes=served.memory_bytes)
