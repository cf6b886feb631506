"""stepdial: fast image generation with one dial, the number of sampling steps.

  serve      serve families over HTTP, with their page
  look       look at data as training would see it: what it is, what is broken, how fast it is read
  train      train a diffusion teacher: a new family
  import     make a family of a diffusers checkpoint: its network is the teacher
  distill    distil the teacher into students for 1, 2, 4, 8, 16 steps
  evaluate   measure quality and speed of each dial position
  ablate     train short distillations that differ in one thing, and measure each
  health     draw how a training run goes, beside one that is known to be well
  bench      put load on a server and report latency by steps, throughput, goodput
  check      try a promise of the server under load: overload, fairness, disconnects, invariance
  scale      size a fleet from the frontier, measure what replicas cost what they share, report what many would
  report     write the measured table into a Markdown file
  curve      draw quality against network evaluations
  sample     draw a grid of pictures into a file
  export     write a student of an imported family as a diffusers pipeline folder
  families   list families and check their files
  openapi    print the description of the HTTP API, as docs/openapi.json has it
  keys       make, list and remove API keys

stepdial COMMAND --help tells more.
"""

import os
import signal
import sys

BROKEN_PIPE = 141
"""Exit status of a program that wrote to a reader who had gone, as shells have it: 128 + SIGPIPE."""
INTERRUPTED = 130
"""Exit status of a program that Ctrl-C ended: 128 + SIGINT."""


def main() -> int:
    """Run the command that the first argument names and return its exit status."""
    if os.getpid() == 1:  # of a container: signals without a handler do not reach it, and loading could not be ended
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        status = _run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `stepdial families | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return BROKEN_PIPE
    except KeyboardInterrupt:  # while the command was imported, for seconds; from then on it has an end of its own
        return INTERRUPTED
    return status


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0 if arguments else 2
    try:
        return _command(arguments)
    except ModuleNotFoundError as error:
        if error.name not in ("training", "benchmarks"):
            raise
        without = f"in an installation without the package {error.name!r}, such as the image that only serves"
        print(f"stepdial: there is no command {arguments[0]!r} {without}", file=sys.stderr)
        return 2


def _command(arguments: list[str]) -> int:
    if arguments[0] == "serve":
        from server.commands import serve

        return serve(arguments[1:])
    if arguments[0] == "openapi":
        from server.commands import openapi

        return openapi(arguments[1:])
    if arguments[0] == "bench":
        from benchmarks.load.commands import bench

        return bench(arguments[1:])
    if arguments[0] == "check":
        from benchmarks.checks.commands import check

        return check(arguments[1:])
    if arguments[0] == "scale":
        from benchmarks.scale.commands import scale

        return scale(arguments[1:])
    if arguments[0] == "keys":
        from server.keys_command import keys

        return keys(arguments[1:])
    return _train(arguments[0], arguments[1:])


def _train(name: str, arguments: list[str]) -> int:
    from pydantic import ValidationError
    from pydantic_settings import CliApp, CliSettingsSource

    from diffusion.allocator import keep_freed_memory
    from training import commands

    if name not in commands.COMMANDS:
        print(f"stepdial: there is no command {name!r}\n\n{__doc__.strip()}", file=sys.stderr)
        return 2
    command = commands.COMMANDS[name]
    keep_freed_memory()
    source: CliSettingsSource = CliSettingsSource(command, cli_prog_name=f"stepdial {name}")
    try:
        CliApp.run(command, cli_args=arguments, cli_settings_source=source)
    except ValidationError as error:
        said, status = commands.misgiven(error), 2
    except commands.FAILURES as error:
        said, status = [str(error)], 1
    except KeyboardInterrupt:
        said, status = ["interrupted; the same command goes on from here"], INTERRUPTED
    else:
        return 0
    lines = "\n".join(f"stepdial {name}: {line}" for line in said)
    print(lines, file=sys.stderr)
    commands.tell_launcher(lines)
    return status


if __name__ == "__main__":
    sys.exit(main())
