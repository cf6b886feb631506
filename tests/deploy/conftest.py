"""What the tests of the server have made already: the tiny family, and a real Redis."""

from tests.server.conftest import family, family_folder, redis_process, redis_server

__all__ = ["family", "family_folder", "redis_process", "redis_server"]
