"""The tiny family and a real server of it, as the server's own tests have them."""

from tests.server.conftest import family, family_folder, real_server  # noqa: F401
