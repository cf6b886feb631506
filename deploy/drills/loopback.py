"""The stack as processes on this machine: HAProxy with the repository's configuration, a Redis, and replicas."""

import asyncio
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
from redis.asyncio import Redis

from deploy.drills.settings import ROOT, DrillSettings
from deploy.drills.stack import BALANCER, REDIS, StackBroken, run, within

CONFIGURATION = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
DISK_MIB = 8
"""Size of each disk that can be filled."""
REDIS_FLAGS = '--save "" --appendonly yes --appendfsync everysec --maxmemory-policy volatile-lru'
"""As in docker-compose.yml."""
SHUTDOWN_DELAY_SECONDS = 3
"""As in docker-compose.yml, so that a rolling update drains as there; a flag in --serve goes before it."""
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
"""Where HAProxy is on Debian, whoever one is."""
NO_SMALL_DISK = "to fill a disk it has to be a small one of its own, which only root can mount"
END_SECONDS = 60
"""How long a part may take to end after SIGTERM."""


class Process:
    """One part of the stack: a command that can be started again and again, and the file that it logs to."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str):
        self._command, self.log = command, log
        self._environment = os.environ | {"PATH": PATH} | environment
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, in a process group of its own."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal. Raises StackBroken when it has ended."""
        if self._process is None or self._process.returncode is not None:
            raise StackBroken(f"{self._command[0]} has ended; it printed:\n{self.log.read_text()[-2000:]}")
        self._process.send_signal(number)

    async def wait(self) -> None:
        """Wait until it has ended. Raises StackBroken when that takes too long."""
        assert self._process
        try:
            await asyncio.wait_for(self._process.wait(), END_SECONDS)
        except TimeoutError:
            raise StackBroken(f"{self._command[0]} does not end") from None

    async def clean_up(self) -> None:
        """End it and everything it started, in whatever state it is."""
        if self._process and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()


class Loopback:
    """A Stack of processes; see there for what the methods do."""

    kind = "loopback"

    def __init__(self, settings: DrillSettings, folder: Path):
        self._patience = settings.patience
        self._disks = {part: folder / part for part in ("logs", REDIS)}
        password = secrets.token_hex(8)
        redis, clients, admin, *replicas = _free_ports(3 + settings.replicas)
        self._redis_url = f"redis://:{password}@127.0.0.1:{redis}/0"
        self.url, self.metrics_url = f"http://127.0.0.1:{clients}", f"http://127.0.0.1:{admin}/metrics"
        self._ports = {f"replica-{number}": port for number, port in enumerate(replicas, 1)}
        self.replicas: Sequence[str] = tuple(self._ports)
        backend = folder / "replicas.cfg"
        servers = [f"    server {name} 127.0.0.1:{port}" for name, port in self._ports.items()]
        backend.write_text("\n".join(["backend stepdial from replicas", *servers, ""]))
        self._parts = {name: self._replica(name, settings) for name in self.replicas} | {
            REDIS: Process(
                shlex.split(
                    f"redis-server --port {redis} --bind 127.0.0.1 --requirepass {password} {REDIS_FLAGS} --dir"
                )
                + [str(self._disks[REDIS])],
                folder / "redis.log",
            ),
            BALANCER: Process(
                ["haproxy", "-W", "-db", "-f", str(CONFIGURATION), "-f", str(backend)],
                folder / "balancer.log",
                BALANCER_BIND=f"127.0.0.1:{clients}",
                BALANCER_ADMIN=f"127.0.0.1:{admin}",
            ),
        }

    def _replica(self, name: str, settings: DrillSettings) -> "Process":
        serve = [sys.executable, "-m", "server", "--family", str(settings.family.resolve()), "--port"]
        command = [*serve, str(self._ports[name]), *shlex.split(settings.serve)]
        environment = {"REDIS_URL": self._redis_url, "STEPDIAL_SHUTDOWN_DELAY_SECONDS": str(SHUTDOWN_DELAY_SECONDS)}
        return Process(command, self._disks["logs"] / name, **environment)

    async def up(self) -> None:
        """Start every part; replicas then warm up by themselves."""
        for disk in self._disks.values():
            disk.mkdir()
            if os.geteuid() == 0:
                await run("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(disk))
        for part in self._parts.values():
            await part.start()
        async with within(self._patience, "a first replica that takes requests"):
            await self._until_somebody_draws()

    async def _until_somebody_draws(self) -> None:
        """Wait for the first replica. Raises StackBroken when a part ends instead."""
        async with aiohttp.ClientSession() as session:
            while True:
                for part in self._parts.values():
                    part.send(signal.SIGCONT)  # which a part that runs does not notice
                with suppress(aiohttp.ClientError):
                    async with session.get(self.url + "/readyz") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.2)

    async def down(self) -> None:
        """End every part."""
        for part in self._parts.values():
            await part.clean_up()
        for disk in self._disks.values():
            if disk.is_mount():
                await run("umount", str(disk))

    async def metrics_of(self, replica: str) -> str:
        """As Stack says."""
        return f"http://127.0.0.1:{self._ports[replica]}/metrics"

    async def kill(self, part: str) -> None:
        """As Stack says."""
        self._parts[part].send(signal.SIGKILL)
        await self._parts[part].wait()

    async def stop(self, part: str) -> None:
        """As Stack says."""
        self._parts[part].send(signal.SIGTERM)
        await self._parts[part].wait()

    async def start(self, part: str) -> None:
        """As Stack says."""
        await self._parts[part].start()

    async def freeze(self, part: str) -> None:
        """As Stack says."""
        self._parts[part].send(signal.SIGSTOP)

    async def thaw(self, part: str) -> None:
        """As Stack says."""
        self._parts[part].send(signal.SIGCONT)

    async def reload(self) -> None:
        """As Stack says."""
        self._parts[BALANCER].send(signal.SIGUSR2)

    async def empty_redis(self) -> None:
        """As Stack says."""
        async with Redis.from_url(self._redis_url) as client:
            await client.flushall()

    async def fill(self, part: str) -> None:
        """As Stack says; the replicas log to one disk."""
        disk = self._disk(part)
        if not disk.is_mount():
            raise StackBroken(NO_SMALL_DISK)
        with (disk / "filler").open("wb", buffering=0) as filler:
            for size in (65536, 1):
                try:
                    while filler.write(bytes(size)) == size:
                        pass
                except OSError:  # no space left on device, which is what was wanted
                    continue

    async def clear(self, part: str) -> None:
        """As Stack says."""
        (self._disk(part) / "filler").unlink()

    def _disk(self, part: str) -> Path:
        return self._disks[REDIS if part == REDIS else "logs"]

    async def log_lines(self, part: str) -> int:
        """As Stack says."""
        return self._parts[part].log.read_bytes().count(b"\n")

    async def versions(self) -> dict[str, str]:
        """As Stack says."""
        balancer, redis = (await run("haproxy", "-v")).split(), (await run("redis-server", "--version")).split()
        return {"haproxy": balancer[2], "redis": redis[2].removeprefix("v=")}


@asynccontextmanager
async def loopback(settings: DrillSettings) -> AsyncIterator[Loopback]:
    """Bring a stack up, and down again with everything it wrote when the block ends. Raises StackBroken."""
    for program in ("haproxy", "redis-server"):
        if shutil.which(program, path=PATH) is None:
            raise StackBroken(f"{program} is not installed (Debian: apt-get install haproxy redis-server)")
    if os.geteuid() != 0 and any(name.startswith("full-disk") for name in settings.drills):
        raise StackBroken(f"{NO_SMALL_DISK}: run as root, or name the other drills")
    with tempfile.TemporaryDirectory(prefix="drills-") as folder:
        stack = Loopback(settings, Path(folder))
        try:
            await stack.up()
            yield stack
        finally:
            await stack.down()


def _free_ports(count: int) -> list[int]:
    """Return TCP ports that nobody listens on just now."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
