"""A pod's life, rehearsed with the rendered manifest's own command, variables, user, probes and grace period."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.deploy.manifests import ROOT, environment, find, overlay, pod, serving


@pytest.mark.slow
def test_a_pod_starts_gets_ready_and_leaves_without_a_lost_request() -> None:
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("needs root, unshare and setpriv for namespaces and another user: the pod's life was not rehearsed")
    resources = overlay("single")
    spec = pod(find(resources, "Deployment"))
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--propagation", "private", sys.executable, "-m", "tests.deploy.rehearsal"],
        input=json.dumps({"pod": spec, "variables": environment(resources, serving(resources))}),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0
    print(done.stdout)
    told = json.loads(done.stdout)
    assert told["started"] | {"probes": 0, "seconds": 0} == {
        "probes": 0,
        "seconds": 0,
        "alive": {"readiness": 200, "liveness": 200},
        "metrics": 200,
        "drawn": 200,
    }
    rights = told["standing"]
    assert rights["Uid"].split() == ["10001"] * 4 and rights["NoNewPrivs"] == "1"
    assert int(rights["CapEff"], 16) == int(rights["CapBnd"], 16) == 0
    assert rights["NSpid"].split()[-1] == "1"
    (container,) = spec["containers"]
    assert int(rights["VmHWM"].split()[0]) < int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**20
    end = told["end"]
    assert list(end["during"]) == ["200"] and end["during"]["200"] > 0  # until balancers know, everything is drawn
    assert end["after"] == {"readiness": 503, "liveness": 200, "refused": 503}
    assert (end["long"], end["status"]) == (200, 0)
    assert end["seconds"] < spec["terminationGracePeriodSeconds"]
