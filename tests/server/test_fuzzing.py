"""Thousands of requests made from the OpenAPI document: no answer is a fault, and every one is documented."""

import os

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.server.processes import PATIENCE, ROOT, ServerProcess, wait_until

document = schemathesis.openapi.from_path(ROOT / "docs" / "openapi.json")
CASES = int(os.environ.get("FUZZ_CASES", "2000"))
"""Requests for each operation that takes any input."""


@pytest.fixture(scope="module")
def job(real_server: ServerProcess) -> str:
    """The id of a job that is done: chance finds none."""
    wish = {"prompt": "a red star on mint", "steps": 1}
    found: str = httpx2.post(real_server.url + "/jobs", json=wish, timeout=PATIENCE).json()["id"]
    wait_until(lambda: real_server.get(f"/jobs/{found}").json()["state"] == "done")
    return found


@pytest.mark.slow
@document.parametrize()
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_the_answer_is_documented_and_no_fault_of_the_server(
    case: Case, real_server: ServerProcess, job: str
) -> None:
    if case.meta and case.meta.generation.mode == GenerationMode.POSITIVE:
        help_along(case, job)
    # which words and which positions are served is not in the document, so a valid request may be refused
    case.call_and_validate(base_url=real_server.url, excluded_checks=[positive_data_acceptance])


def help_along(case: Case, job: str) -> None:
    """Give a valid request what chance does not find: words that are known, positions that are served, a job."""
    if isinstance(case.body, dict):
        case.body |= {"prompt": "a red star on mint"}
        if isinstance(case.body.get("steps"), int):
            case.body["steps"] = (1, 2, 4, 3)[case.body["steps"] % 4]
    if case.path_parameters and len(str(case.path_parameters.get("job_id", "x"))) % 2 == 0:
        case.path_parameters["job_id"] = job
        if isinstance(case.path_parameters.get("index"), int):
            case.path_parameters["index"] %= 2
