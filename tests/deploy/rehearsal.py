"""A pod's life without a cluster: the container's command, variables and security settings as a process, probed as the
kubelet would, then deleted under load.

Run as root inside `unshare --mount --net --propagation private`, with a Deployment's pod and its variables as JSON on standard
input; writes what happened as JSON. The root file system is read-only, the network has nothing but loopback, the server is
process 1 of a process namespace of its own, without capabilities. Not rehearsed: seccomp, cgroup limits, the image.
"""

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PYTHON, SOURCE, LIBRARIES = Path("/srv"), Path("/mnt"), Path("/media")
"""Where a user who may not look into the developer's home finds what the image would hold."""
LONG = {"prompt": "a red star on mint", "steps": 64, "seed": 1}
SHORT = {"prompt": "a blue ring on cream", "steps": 4, "determinism": "fast"}


def isolate(tmp_bytes: str) -> None:
    """Make the mounts as they are in the container, and bring loopback up."""
    libraries = next(path for path in sys.path if (Path(path) / "torch").is_dir())
    for source, target in ((sys.base_prefix, PYTHON), (ROOT, SOURCE), (libraries, LIBRARIES)):
        mount("--bind", str(source), str(target))
        mount("-o", "remount,bind,ro", str(target))
    mount("-t", "tmpfs", "-o", f"size={tmp_bytes},mode=1777", "tmpfs", "/tmp")
    mount("-o", "remount,bind,ro", "/")
    with socket.socket() as any_socket:  # SIOCSIFFLAGS with IFF_UP
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 1))


def mount(*arguments: str) -> None:
    """Call mount(8)."""
    subprocess.run(["mount", *arguments], check=True)


def start(pod: dict[str, Any], variables: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the container's process with what its manifest and its image say, and nothing of this environment."""
    (container,) = pod["containers"]
    context = pod["securityContext"] | container["securityContext"]
    assert context["readOnlyRootFilesystem"] and context["capabilities"] == {"drop": ["ALL"]}
    user = ["--reuid", str(context["runAsUser"]), "--regid", str(context["runAsGroup"]), "--clear-groups"]
    drop = ["--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs"]
    python = str(PYTHON / "bin" / Path(os.path.realpath(sys.executable)).name)
    image = {"PYTHONPATH": f"{SOURCE}:{LIBRARIES}", "PYTHONDONTWRITEBYTECODE": "1"}
    moved = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(PYTHON / "lib")}
    return subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        + ["setpriv", *user, *drop, python, "-m", "stepdial", *container["args"]],
        cwd=SOURCE,
        env=moved | image | variables,
        stdout=sys.stderr,
    )


def first_process(namespace: subprocess.Popen[bytes]) -> int:
    """Return the process that is number 1 in the namespace, by its number out here."""
    return int(Path(f"/proc/{namespace.pid}/task/{namespace.pid}/children").read_text().split()[0])


def ask(port: int, path: str, seconds: float, body: dict[str, Any] | None = None) -> int:
    """Return the status of an answer, 0 if there is none in time."""
    connection = HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        text = json.dumps(body) if body else None
        connection.request("POST" if body else "GET", path, text, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, HTTPException):
        return 0
    finally:
        connection.close()


def probe(container: dict[str, Any], name: str) -> int:
    """Ask once as the kubelet would."""
    settings = container[f"{name}Probe"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    get = settings["httpGet"]
    return ask(ports[get["port"]], get["path"], settings["timeoutSeconds"])


def wait_for_start(container: dict[str, Any], process: subprocess.Popen[bytes]) -> int:
    """Probe until it has started; return how many probes that took. Raises TimeoutError when the kubelet would kill it."""
    settings = container["startupProbe"]
    for number in range(1, settings["failureThreshold"] + 1):
        if process.poll() is not None:
            raise ChildProcessError(f"the server ended with {process.returncode}")
        if probe(container, "startup") == 200:
            return number
        time.sleep(settings["periodSeconds"])
    raise TimeoutError("the startup probe's budget is spent")


def standing(pid: int) -> dict[str, str]:
    """What the kernel says of the server's rights and memory."""
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: lines[name].strip() for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "NSpid", "VmHWM")}


class Crowd:
    """Clients that ask on and on, and count the answers."""

    def __init__(self, port: int, clients: int = 2):
        self.statuses: Counter[int] = Counter()
        self._going = True
        self._threads = [threading.Thread(target=self._ask, args=(port,)) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, port: int) -> None:
        while self._going:
            self.statuses[ask(port, "/generate", 60, SHORT)] += 1

    def stop(self) -> dict[int, int]:
        """Let each client have its last answer; return how often each status came."""
        self._going = False
        for thread in self._threads:
            thread.join()
        return dict(self.statuses)


def delete(pod: dict[str, Any], process: subprocess.Popen[bytes], port: int) -> dict[str, Any]:
    """Delete the pod: preStop while balancers still send, then SIGTERM, with a long request under way."""
    (container,) = pod["containers"]
    pid, begun = first_process(process), time.monotonic()
    crowd = Crowd(port)
    time.sleep(container["lifecycle"]["preStop"]["sleep"]["seconds"])
    during = crowd.stop()
    long: list[int] = []
    waiting = threading.Thread(target=lambda: long.append(ask(port, "/generate", 300, LONG)))
    waiting.start()
    time.sleep(0.5)  # accepted, and far from done
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.3)
    after = {name: probe(container, name) for name in ("readiness", "liveness")}
    after["refused"] = ask(port, "/generate", 10, SHORT)
    status = process.wait(pod["terminationGracePeriodSeconds"] - (time.monotonic() - begun))
    waiting.join()
    return {"during": during, "after": after, "long": long[0], "status": status, "seconds": time.monotonic() - begun}


def rehearse(pod: dict[str, Any], variables: dict[str, str]) -> dict[str, Any]:
    """Start, probe, draw, delete; return what happened."""
    (container,) = pod["containers"]
    (tmp,) = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if volume["name"] == "tmp"]
    isolate(tmp.removesuffix("i"))
    begun, process = time.monotonic(), start(pod, variables)
    try:
        probes = wait_for_start(container, process)
        seconds, port = time.monotonic() - begun, int(variables["STEPDIAL_PORT"])
        alive = {name: probe(container, name) for name in ("readiness", "liveness")}
        metrics = ask(int(variables["STEPDIAL_ADMIN_PORT"]), "/metrics", 10)
        drawn = ask(port, "/generate", 60, SHORT)
        rights = standing(first_process(process))
        end = delete(pod, process, port)
    finally:
        process.kill()
        process.wait()
    started = {"probes": probes, "seconds": seconds, "alive": alive, "metrics": metrics, "drawn": drawn}
    return {"started": started, "standing": rights, "end": end}


if __name__ == "__main__":
    json.dump(rehearse(**json.load(sys.stdin)), sys.stdout)
