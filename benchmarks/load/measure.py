"""Measures a server: one run for each load, summed up."""

from random import Random
from typing import Any

from tqdm import tqdm

from benchmarks.load.arrivals import arrivals
from benchmarks.load.client import Client, NotServed
from benchmarks.load.loops import Extent, Run, closed_loop, open_loop
from benchmarks.load.result import Result, client_versions, lines
from benchmarks.load.settings import BenchSettings, numbers
from benchmarks.load.summary import Summary, summarise
from benchmarks.load.wishes import Wishes
from diffusion import provenance


async def measure(settings: BenchSettings) -> Result:
    """Run every load, each when the answers of the one before have come, and print what came of it.

    Raises NotServed.
    """
    began, runs = provenance.now(), []
    key = settings.api_key.get_secret_value() if settings.api_key else None
    async with Client(
        settings.url, endpoint=settings.endpoint, timeout_seconds=settings.timeout_seconds, key=key
    ) as client:
        served = await client.models()
        await client.ready()
        model = _model(served["data"], settings.model)
        for load in numbers(settings.rates or settings.clients):
            runs.append(await _summary(settings, client, model, load))
            print("\n".join(lines(runs[-1])), flush=True)
    return Result(
        command=provenance.command(),
        note=settings.note,
        measured_at=began,
        model=model["name"],
        server=served.get("server"),
        client=client_versions(),
        settings=settings.model_dump(mode="json", exclude={"api_key", "out", "plot", "note"}),
        runs=tuple(runs),
    )


def _model(served: list[dict[str, Any]], name: str | None) -> dict[str, Any]:
    found = [model for model in served if name in (None, model["name"])]
    if not found:
        raise NotServed(f"no model {name!r} is served, but {', '.join(model['name'] for model in served)}")
    return found[0]


async def _summary(settings: BenchSettings, client: Client, model: dict[str, Any], load: float) -> Summary:
    extent = Extent(
        warmup_seconds=settings.warmup_seconds,
        seconds=None if settings.requests else settings.seconds,
        requests=settings.requests,
    )
    with _bar(settings, load) as bar:

        def tick(seconds: float, answers: int, flying: int) -> None:
            bar.n = min(bar.total, answers if settings.requests else round(seconds, 1))
            bar.set_postfix_str(f"{answers} answers, {flying} in flight")

        run = await _run(settings, client, model, load, extent, tick)
    closed = bool(settings.clients)
    return summarise(
        run,
        rate=None if closed else load,
        clients=int(load) if closed else None,
        slo=settings.slo,
        has_deadline=settings.deadline_ms is not None,
    )


async def _run(
    settings: BenchSettings, client: Client, model: dict[str, Any], load: float, extent: Extent, tick: Any
) -> Run:
    random = Random(f"{settings.seed} {load}")
    fields = {
        name: getattr(settings, name)
        for name in ("n", "deadline_ms", "allow_degrade", "determinism", "output_format")
        if name != "n" or settings.n > 1
    }
    wishes = Wishes(model, settings.steps, Random(random.random()), endpoint=settings.endpoint, **fields)
    if settings.clients:
        return await closed_loop(client, wishes, int(load), extent, tick)
    bursts = {"burst_seconds": settings.burst_seconds, "pause_seconds": settings.pause_seconds}
    return await open_loop(client, wishes, arrivals(settings.arrivals, load, random, **bursts), extent, tick)


def _bar(settings: BenchSettings, load: float) -> tqdm:
    name = f"{load:g} clients" if settings.clients else f"{load:g}/s"
    if settings.requests:
        return tqdm(total=settings.requests, desc=name, unit="request", leave=False)
    total = settings.warmup_seconds + settings.seconds
    return tqdm(
        total=total,
        desc=name,
        bar_format="{desc}: {percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} s, {postfix}",
        leave=False,
    )
