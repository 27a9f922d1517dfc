# SPDX-License-Identifier: Apache-2.0
"""A few seconds of the stress test on each path; `make check-stress` runs it for minutes. Its line says which seed failed."""

import subprocess

import pytest

from harness import BUILD, SANITIZED, Reaper, environment, need_build, text

STRESS = BUILD / "tests" / "stress" / "stress"
LIMIT = 150  # seconds after which it counts as hung


def stress(*options):
    need_build("memserver", "tests/stress/stress")
    with Reaper() as reaper:
        process = reaper.popen([STRESS, *options], env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
        try:
            out, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired as late:
            pytest.fail(f"hung for {LIMIT} s\n{text(late.stdout)}")
    return process.returncode, text(out)


@pytest.mark.timeout(LIMIT + 30)
@pytest.mark.parametrize("path", ["move", "fallback"])
def test_memory_stays_what_its_shadow_is(path):
    # The thread sanitizer can't start threads in a child of fork.
    status, out = stress("--path", path, "--seconds", "8", *(["--no-forks"] if SANITIZED else []))
    assert status == 0, out
    assert "stress: right" in out
