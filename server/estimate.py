"""`POST /estimate`: what a request would take and get now. Nothing is drawn."""

from fastapi import APIRouter

from server.contract import problems
from server.roster import Roster
from server.schemas import Estimate, GenerateRequest


def estimate_routes(roster: Roster) -> APIRouter:
    """The route that looks ahead."""
    router = APIRouter(tags=["reading"])

    @router.post("/estimate", summary="What a request would take and get now", responses=ESTIMATE_RESPONSES)
    async def estimate(body: GenerateRequest) -> Estimate:
        """Take the body of /generate, draw nothing, and tell for each position how long it would take from now on."""
        return roster.find(body.model).dial.estimate(body)

    return router


ESTIMATE_RESPONSES = problems(400, 401, 403, 404, 408, 413, 415, 422, 500, 503)
