"""The drills: what each breaks and mends, and what its clients may notice of it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from deploy.drills.scene import Scene
from deploy.drills.settings import DrillName
from deploy.drills.stack import REDIS, within

OVERLOAD = 4.0
"""How many times more than it can do an overloaded stack is asked for."""
RELOADS = 5


@dataclass(frozen=True, slots=True)
class Drill:
    """A fault, and what is promised while it lasts: no accepted job is lost and no result differs in any of them but one."""

    does: str
    """What is broken and mended, in a sentence."""
    fault: Callable[[Scene], Awaitable[None]]
    refuses: Literal["nothing", "orders", "everything"] = "nothing"
    """What may be refused meanwhile, with Retry-After: never more than what needs the part that is away."""
    felt: bool = False
    """Whether orders have to be refused meanwhile, or else nothing was broken."""
    forgets: bool = False
    """Whether the store loses what it had, so that jobs have to be ordered again under their keys."""
    degrades: bool = False
    """Whether requests allow fewer steps than they ask for."""
    busy: bool = False
    """Whether it breaks a replica that has jobs in hand, or else no job had to be begun again."""


async def kill_replica(scene: Scene) -> None:
    """End a replica by SIGKILL while it draws, and start it again later."""
    name, stack = await scene.busy_replica(), scene.stack
    await scene.act(f"{name} is killed", stack.kill(name))
    await asyncio.sleep(scene.hold)
    await scene.act(f"{name} is started", stack.start(name))


async def hang_replica(scene: Scene) -> None:
    """Stop a replica in its tracks, longer than its leases last, and let it go on."""
    name, stack = await scene.busy_replica(), scene.stack
    await scene.act(f"{name} hangs", stack.freeze(name))
    await asyncio.sleep(scene.hold)
    await scene.act(f"{name} goes on", stack.thaw(name))


async def restart_redis(scene: Scene) -> None:
    """Stop Redis in order and start it at once."""
    await scene.act("redis is stopped", scene.stack.stop(REDIS))
    await scene.act("redis is started", scene.stack.start(REDIS))


async def lose_redis(scene: Scene) -> None:
    """End Redis by SIGKILL, and start it again later on the data that it had written."""
    await scene.act("redis is killed", scene.stack.kill(REDIS))
    await asyncio.sleep(scene.hold)
    await scene.act("redis is started", scene.stack.start(REDIS))


async def hang_redis(scene: Scene) -> None:
    """Stop Redis in its tracks: connections stay open and nobody answers."""
    await scene.act("redis hangs", scene.stack.freeze(REDIS))
    await asyncio.sleep(scene.hold)
    await scene.act("redis goes on", scene.stack.thaw(REDIS))


async def empty_redis(scene: Scene) -> None:
    """Delete everything in Redis."""
    await scene.act("redis is emptied", scene.stack.empty_redis())


async def reload_balancer(scene: Scene) -> None:
    """Have the balancer read its configuration anew, several times."""
    for number in range(RELOADS):
        await scene.act(f"the balancer reloads, {number + 1} of {RELOADS}", scene.stack.reload())
        await asyncio.sleep(scene.hold / RELOADS)


async def rolling_update(scene: Scene) -> None:
    """Stop and start one replica after the other, each when the one before takes requests again."""
    for name in scene.stack.replicas:
        await scene.act(f"{name} is stopped", scene.stack.stop(name))
        await scene.act(f"{name} is started", scene.stack.start(name))
        await gone_and_back(scene)


async def gone_and_back(scene: Scene) -> None:
    """Wait until the balancer has missed the replica that was just started, and has it again."""
    async with within(scene.patience, "the balancer's word that the replica is away which was stopped"):
        while scene.watch.up == len(scene.stack.replicas):
            await asyncio.sleep(0.1)
    await scene.whole()


async def full_disk_of_a_replica(scene: Scene) -> None:
    """Fill the disk that replicas write to, which is their log's."""
    name, stack = scene.stack.replicas[0], scene.stack
    await scene.act("the disk of the logs is full", stack.fill(name))
    await asyncio.sleep(scene.hold)
    await scene.act("the disk of the logs has room", stack.clear(name))


async def full_disk_of_redis(scene: Scene) -> None:
    """Fill the disk that Redis keeps its append-only file on."""
    await scene.act("the disk of redis is full", scene.stack.fill(REDIS))
    await asyncio.sleep(scene.hold)
    await scene.act("the disk of redis has room", scene.stack.clear(REDIS))


async def overload(scene: Scene, *, allow_degrade: bool = False) -> None:
    """Measure what the stack can do, then offer four times that."""
    capacity = await scene.load.capacity(scene.seconds)
    scene.mark(f"it can do {capacity:.1f} requests a second")
    rate = OVERLOAD * capacity
    flood = scene.load.flood(rate, 3 * scene.seconds, allow_degrade=allow_degrade)
    await scene.act(f"{rate:.1f} more a second are offered", flood)


async def overload_degrade(scene: Scene) -> None:
    """Do the same to clients who allow fewer steps than they ask for."""
    await overload(scene, allow_degrade=True)


DRILLS: Mapping[DrillName, Drill] = {
    "kill-replica": Drill("a replica with jobs in hand is killed (SIGKILL) and started again later", kill_replica, busy=True),
    "hang-replica": Drill(
        "a replica with jobs in hand hangs (SIGSTOP) for longer than its leases last, then goes on", hang_replica, busy=True
    ),
    "restart-redis": Drill("Redis is stopped in order and started at once", restart_redis, refuses="orders"),
    "lose-redis": Drill("Redis is killed and started again later on its data", lose_redis, refuses="orders", felt=True),
    "hang-redis": Drill("Redis hangs (SIGSTOP), then goes on", hang_redis, refuses="orders", felt=True),
    "empty-redis": Drill("everything in Redis is deleted", empty_redis, refuses="orders", forgets=True),
    "reload-balancer": Drill(f"the balancer reloads {RELOADS} times", reload_balancer),
    "rolling-update": Drill("every replica is stopped (SIGTERM) and started, one after the other", rolling_update),
    "full-disk-logs": Drill("the disk that replicas log to is full, then has room", full_disk_of_a_replica),
    "full-disk-redis": Drill(
        "the disk of Redis's append-only file is full, then has room", full_disk_of_redis, refuses="orders", felt=True
    ),
    "overload": Drill("four times more than the stack can do is asked for", overload, refuses="everything"),
    "overload-degrade": Drill(
        "the same, by clients who allow fewer steps", overload_degrade, refuses="everything", degrades=True
    ),
}  # fmt: skip
"""By name, as on the command line."""
