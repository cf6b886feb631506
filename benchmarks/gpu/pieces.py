"""All pieces of the queue. A piece's name is that of its result file."""

from collections.abc import Sequence

from benchmarks.gpu.commands import frontier, measured_by, stepdial, tests, training_speed
from benchmarks.gpu.loops import copies, products, whole_loop
from benchmarks.gpu.piece import Ask, Piece, Step
from benchmarks.gpu.serving import price_of_exact, saturation, start
from diffusion.family import Precision

DIAL = (1, 2, 4, 8, 16, 32)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
TINY = ("--family", "{work}/digits", "--runs", "{work}/runs", "--tracker", "none", "--probes", "0")
SCENES = ("--family", "{work}/scenes", "--runs", "{work}/runs", "--tracker", "none")


def _of_kernels(ask: Ask) -> Sequence[Step]:
    names = ("hop", "last_hop", "noise", "norm", "norm_backward", "target", "film")
    sizes = ("--seconds", "0.01") if ask.tiny else ()
    return tuple(
        Step(name, measured_by("--pieces", name, *sizes, module="benchmarks.kernels"), 5)
        for name in (names[2:3] if ask.tiny else names)
    )


def _networks(*arguments: str, minutes: float, name: str) -> Step:
    return Step(name, lambda ask: measured_by(*_small(ask, arguments), module="benchmarks.networks")(ask), minutes)


def _small(ask: Ask, arguments: Sequence[str]) -> Sequence[str]:
    tiny = ("--preset", "debug", "--rows", "1", "--rounds", "1", "--ways", "fp32,bf16", "--matrix", "64")
    return tiny if ask.tiny else arguments


def _of_networks(ask: Ask) -> Sequence[Step]:
    large = ("--preset", "imagenet64-small", "--rows", "64")
    buckets = ("--rows", "1,2,4,8,16,32,64")
    eager, graphs = "fp32,bf16,bf16-contiguous", "fp32-graph,bf16-graph"
    return (
        _networks(*large, "--ways", f"fp32,bf16,bf16-contiguous,{graphs}", name="imagenet64-small", minutes=3),
        _networks(*large, "--ways", "bf16-compiled,bf16-compiled-graph", name="imagenet64-small compiled", minutes=7),
        _networks(*large, "--ways", "fp32", "--train", "64", name="imagenet64-small training", minutes=3),
        _networks(
            *large,
            "--ways",
            "fp32,fp32-compiled",
            "--train",
            "64",
            name="imagenet64-small training compiled",
            minutes=7,
        ),
        _networks(*buckets, "--ways", f"{eager},{graphs}", name="shapes", minutes=3),
        _networks("--rows", "1,64", "--ways", "bf16,bf16-compiled", "--starts", name="shapes compiled", minutes=7),
    )


def _of_scenes(ask: Ask) -> Sequence[Step]:
    data = ("--data", "scenes", "--preset", "small64")
    long = ("--iterations", "60000", "--batch", "256", "--lr", "1e-3", "--seed", "1")
    short = ("--iterations", "8000", "--batch", "256", "--lr", "3.5e-4", "--seed", "1")
    few = ("--iterations", "4", "--batch", "8")
    digits = ("--data", "digits", "--preset", "debug")
    tiny = ("--samples", "80", "--seeds", "1", "--positions", "1")
    return (
        Step("teacher", stepdial("train", *data, *SCENES, *long, tiny=("train", *digits, *TINY, *few)), 1),
        Step("students", stepdial("distill", *SCENES, *short, tiny=("distill", *TINY, *few, "--steps", "1")), 1),
        Step("whole", stepdial("distill", "--whole", *SCENES, *short, tiny=("distill", "--whole", *TINY, *few)), 1),
        Step(
            "frontier",
            stepdial("evaluate", *SCENES[:4], tiny=("evaluate", *TINY[:4], *tiny)),
            1,
        ),
    )


PIECES: tuple[Piece, ...] = (
    Piece(
        "ceilings",
        "what do copies and matrix products reach?",
        lambda ask: (Step("copies", copies, 1), Step("products", products, 1)),
    ),
    Piece(
        "tests",
        "do kernels, networks, training and waves pass the tests that need a GPU (bits, gradients, graphs)?",
        lambda ask: (
            Step("kernels", tests("-m", "gpu", "tests/kernels"), 4),
            Step("diffusion", tests("-m", "gpu", "tests/diffusion"), 2),
            Step("gradients compiled", tests("-m", "slow", "tests/diffusion"), 4),
            Step("training", tests("-m", "gpu", "tests/training"), 2),
            Step("server", tests("-m", "gpu", "tests/server"), 2),
        ),
    ),
    Piece(
        "kernels",
        "what do hop, noise and norms take against memory traffic, eager, compiled and diffusers?",
        _of_kernels,
    ),
    Piece(
        "networks",
        "what part of the matrix peak do evaluation and training reach, eager, compiled, as graphs, and what does compiling cost?",
        _of_networks,
    ),
    Piece(
        "loops",
        "what does a plan's whole loop in one graph gain over the sampler, with equal bytes?",
        lambda ask: tuple(
            Step(f"{steps} steps, batch {batch}, {precision}", whole_loop("shapes", steps, batch, precision), 1)
            for precision in PRECISIONS
            for steps, batch in ((1, 64), (4, 1), (4, 16), (4, 64), (32, 64))
        ),
    ),
    Piece(
        "start",
        "does the bundled family pass its golden check, which sizes give equal bits, is every wave recorded, how long is a start?",
        lambda ask: tuple(Step(precision, start("shapes", precision), 2) for precision in PRECISIONS),
    ),
    Piece(
        "frontier",
        "what do dial positions give and cost?",
        lambda ask: tuple(Step(f"{steps} steps", frontier("shapes", steps), 3) for steps in DIAL),
    ),
    Piece(
        "serving",
        "what part of the bare loop's throughput does the server reach?",
        lambda ask: tuple(
            Step(f"{mix}, {precision}", saturation("shapes", mix, precision), 2)
            for precision in PRECISIONS
            for mix in (*(f"{steps}:1" for steps in DIAL), ",".join(f"{steps}:1" for steps in DIAL))
        ),
    ),
    Piece(
        "exact",
        "what do exact samples cost?",
        lambda ask: tuple(
            Step(f"{mix}, {precision}", price_of_exact("shapes", mix, precision), 3)
            for precision in PRECISIONS
            for mix in ("4:1", ",".join(f"{steps}:1" for steps in DIAL))
        ),
    ),
    Piece(
        "training",
        "how many images a second do presets train on, and what does --compile gain?",
        lambda ask: tuple(
            Step(f"{preset}, batch {batch}{flag and ', '}{flag}", training_speed(preset, batch, *flag.split()), 4)
            for preset, batch in (("cifar10", 256), ("small64", 256), ("imagenet64-small", 64))
            for flag in ("", "--compile")
        ),
    ),
    Piece(
        "scenes",
        "a family of scenes, one shape or two, 64x64: teacher, students and frontier, trained over several starts",
        _of_scenes,
    ),
)
