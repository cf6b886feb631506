"""The stack as the containers of docker-compose.yml, which are up already and stay up."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from deploy.drills.settings import DrillSettings
from deploy.drills.stack import BALANCER, REDIS, StackBroken, run

REPLICA = "stepdial"
"""The name in Docker's networks to which all replicas answer, and by which the balancer finds them."""
LARGEST_DISK_MIB = 512
"""A larger disk is not filled: it is probably the host's."""


class Compose:
    """A Stack of containers, found by their project and service; see there for what the methods do."""

    kind = "compose"

    def __init__(self, url: str, metrics_url: str, replicas: list[str], containers: dict[str, str]):
        self.url, self.metrics_url = url, metrics_url
        self.replicas: Sequence[str] = replicas
        self._containers = containers

    async def metrics_of(self, replica: str) -> str:
        """As Stack says; its address may be another one after each start."""
        return f"http://{await _address(replica)}:9000/metrics"

    async def kill(self, part: str) -> None:
        """As Stack says; the restart policy leaves alone what was killed by hand."""
        await self._docker("kill", part)

    async def stop(self, part: str) -> None:
        """As Stack says, with the container's own grace period."""
        await self._docker("stop", part)

    async def start(self, part: str) -> None:
        """As Stack says."""
        await self._docker("start", part)

    async def freeze(self, part: str) -> None:
        """As Stack says."""
        await self._docker("pause", part)

    async def thaw(self, part: str) -> None:
        """As Stack says."""
        await self._docker("unpause", part)

    async def reload(self) -> None:
        """As Stack says."""
        # from inside: after any `docker kill`, whatever the signal, `restart: unless-stopped` no longer restarts a container
        await self._inside(BALANCER, "kill -USR2 1")

    async def empty_redis(self) -> None:
        """As Stack says; the container's environment has the password."""
        if (answer := await self._inside(REDIS, "redis-cli FLUSHALL")) != "OK":
            raise StackBroken(f"redis was not emptied: {answer}")

    async def fill(self, part: str) -> None:
        """As Stack says: of Redis that of /data, of a replica /tmp, the only place that it can write to."""
        await self.check_disk(part)
        folder = _folder(part)
        await self._inside(part, f"dd if=/dev/zero of={folder}/filler bs=64k 2>/dev/null; dd if=/dev/zero bs=1 2>/dev/null "
                                 f">>{folder}/filler; true")  # fmt: skip

    async def check_disk(self, part: str) -> None:
        """See that the disk that a part writes to is small enough to be filled. Raises StackBroken where it is not."""
        folder = _folder(part)
        kib = int(await self._inside(part, f"df -Pk {folder} | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2"))
        if kib > LARGEST_DISK_MIB * 1024:
            raise StackBroken(
                f"{folder} of {part} is on a disk of {kib // 2**20} GiB, which is not filled; deploy/drills/small-disk.yml "
                "gives Redis a small one"
            )

    async def clear(self, part: str) -> None:
        """As Stack says."""
        await self._inside(part, f"rm {_folder(part)}/filler")

    async def log_lines(self, part: str) -> int:
        """As Stack says."""
        return (await run("docker", "logs", self._containers[part])).count("\n")

    async def versions(self) -> dict[str, str]:
        """As Stack says."""
        balancer = (await self._inside(BALANCER, "haproxy -v")).split()
        redis = (await self._inside(REDIS, "redis-server --version")).split()
        engine = await run("docker", "version", "--format", "{{.Server.Version}}")
        return {"haproxy": balancer[2], "redis": redis[2].removeprefix("v="), "docker": engine}

    async def _docker(self, verb: str, part: str) -> None:
        await run("docker", verb, self._containers[part])

    async def _inside(self, part: str, script: str) -> str:
        return await run("docker", "exec", self._containers[part], "sh", "-c", script)


def _folder(part: str) -> str:
    return "/data" if part == REDIS else "/tmp"


@asynccontextmanager
async def compose(settings: DrillSettings) -> AsyncIterator[Compose]:
    """Find the containers of the project. Raises StackBroken when they are not up."""
    project = settings.project
    found = {part: await _containers(project, part) for part in (BALANCER, REDIS)} | {REPLICA: await _replicas(project)}
    if missing := [service for service, names in found.items() if not names]:
        raise StackBroken(f"project {project!r} has no container of {missing[0]}; docker compose up --wait starts it")
    containers = {BALANCER: found[BALANCER][0], REDIS: found[REDIS][0], **{name: name for name in found[REPLICA]}}
    metrics_url = f"http://{await _address(containers[BALANCER])}:8404/metrics"
    stack = Compose(settings.url, metrics_url, found[REPLICA], containers)
    if "full-disk-redis" in settings.drills:
        await stack.check_disk(REDIS)  # before anything is broken
    yield stack


async def _address(container: str) -> str:
    """Return an address of a container; this machine reaches all of Docker's networks."""
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
    return (await run("docker", "inspect", "--format", form, container)).split()[0]


async def _replicas(project: str) -> list[str]:
    """Return the containers that the balancer counts, of whatever service: docker-compose.gpu.yml has one for each GPU."""
    form = "{{range .NetworkSettings.Networks}}{{range .Aliases}}{{.}} {{end}}{{end}}"
    everything = await _containers(project)
    aliases = {name: (await run("docker", "inspect", "--format", form, name)).split() for name in everything}
    return [name for name in everything if REPLICA in aliases[name]]


async def _containers(project: str, service: str | None = None) -> list[str]:
    """Return the names of the containers of a service, or of all, that run."""
    labels = [f"project={project}", *([f"service={service}"] if service else [])]
    filters = [f"--filter=label=com.docker.compose.{label}" for label in labels]
    return sorted((await run("docker", "ps", *filters, "--format", "{{.Names}}")).split())
