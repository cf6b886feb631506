"""The tiny family, written once, and a real server of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from diffusion.family import Family, open_family
from server.engine import Engine, choose_device
from tests.server.desk import Desk
from tests.server.processes import ServerProcess, serve_real
from tests.server.redis_server import RedisServer
from tests.server.tiny import write_tiny_family


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a prompt family of tiny networks with random weights, golden samples and a frontier."""
    return write_tiny_family(tmp_path_factory.mktemp("families") / "tiny")


@pytest.fixture(scope="session")
def family(family_folder: Path) -> Family:
    """The tiny family."""
    return open_family(family_folder)


@pytest.fixture(scope="session")
def engine(family: Family) -> Engine:
    """An engine of the tiny family, prepared."""
    engine = Engine(family, device=choose_device("cpu"), max_wave=8)
    engine.prepare()
    return engine


@pytest.fixture(scope="session")
def real_server(family_folder: Path) -> Iterator[ServerProcess]:
    """A server of the tiny family, as users start it."""
    with serve_real(family_folder, "--max-wave", "8") as server:
        yield server


@pytest.fixture
def desk(family: Family) -> Iterator[Desk]:
    """A client of an app of the tiny family; its device draws names."""
    with Desk(family) as desk:
        yield desk


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """A real Redis, empty."""
    redis_process.client.flushall()
    return redis_process
