"""What serves, as GET /models and the metrics tell it."""

from diffusion import provenance
from server.engine import choose_device
from server.schemas import ServerInfo


def about(device: str) -> ServerInfo:
    """Return the facts of a server whose setting `device` this is."""
    return ServerInfo(
        commit=provenance.commit(),
        device=provenance.device_name(choose_device(device)),
        versions=provenance.versions(),
    )
