# SPDX-License-Identifier: Apache-2.0
"""System calls and the kernel's own accesses (signal frames, stacks, futexes) to memory that is not resident."""

import pytest

from harness import APPS, needs_preload

pytestmark = needs_preload

SCENES = {"write": 1, "read": 1, "vectors": 1, "messages": 1, "pipes": 1, "futexes": 0, "mutexes": 0, "direct-io": 2,
          "structures": 0, "signal-stack": 1, "thread-stacks": 1}


@pytest.mark.parametrize("scene", SCENES)
def test_system_calls_on_remote_pages(coal, scene, tmp_path):
    coal([APPS / "sysio", scene, tmp_path], local="4M").must_succeed()


@pytest.mark.parametrize("scene", [scene for scene, fills in SCENES.items() if fills])
def test_one_wrong_byte_fails_the_scene(coal, scene, tmp_path):
    for number in range(1, SCENES[scene] + 1):
        done = coal([APPS / "sysio", scene, tmp_path], env={"COAL_TEST_BREAK": str(number)}, plain=True)
        assert done.status == 1, f"fill {number} was wrong, and yet: {done!r}"
