"""`POST /estimate`: what a request would take and get now. Nothing is drawn."""

from fastapi import APIRouter

from server.contract import problems
from server.dial import Dial
from server.schemas import Estimate, GenerateRequest


def estimate_routes(dial: Dial) -> APIRouter:
    """The route that looks ahead."""
    router = APIRouter(tags=["reading"])

    @router.post("/estimate", summary="What a request would take and get now", responses=ESTIMATE_RESPONSES)
    async def estimate(body: GenerateRequest) -> Estimate:
        """Take the body of /generate, draw nothing, and tell for each position how long it would take from now on."""
        return dial.estimate(body)

    return router


ESTIMATE_RESPONSES = problems(400, 404, 413, 415, 422, 500, 503)
