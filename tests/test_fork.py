# SPDX-License-Identifier: Apache-2.0
"""fork under `coal run`: parent and child each see memory as it was at the fork, however much of it is remote."""

import pytest

from harness import APPS, PLAIN, needs_coal, needs_preload, text, wait_until

pytestmark = needs_preload

FORKS = APPS / "forks"

SCENES = ["child-sees", "parent-sees", "child-frees", "grandchildren", "siblings", "exec-after-fork", "exec-self", "vfork-exec",
          "spawn", "exit-in-child", "threaded"]


@pytest.mark.parametrize("scene", SCENES)
def test_fork(coal, scene):
    coal([FORKS, scene], local="4M").must_succeed()


def test_forks_in_the_middle_of_evictions(coal):
    """Each of 150 forks comes while pages are leaving; the child must see the last store to each of them."""
    coal([FORKS, "while-evicting"], local="2M").must_succeed()


def test_child_outlives_its_parent(coal, tmp_path):
    result = tmp_path / "result"
    coal([FORKS, "daemonise", result], local="4M", remote=False).must_succeed()
    wait_until(result.exists, 60, "the daemon's verdict")
    assert result.read_text() == "right\n"


@needs_coal
def test_child_outlives_its_parent_on_a_shared_memserver(coal, memserver, tmp_path):
    server, result = memserver(lease=1), tmp_path / "result"
    coal([FORKS, "daemonise", result], local="4M", remote=False, pool=server.address).must_succeed()
    wait_until(result.exists, 60, "the daemon's verdict")
    assert result.read_text() == "right\n"
    wait_until(lambda: server.stat()["clients"] == 0, 30, "the memory of parent and daemon is free")


@needs_coal
def test_capacity_comes_back_after_a_hundred_forks(coal_start, memserver, tmp_path):
    server = memserver(capacity="256M")
    program = coal_start([FORKS, "hundred"], errors=tmp_path / "errors", local="4M", pool=server.address)
    assert program.answer() == "filled"
    before = server.stat()
    assert before["clients"] == 1 and before["promised"] >= 16 * 256
    program.tell("")
    assert program.answer() == "forked", program.stderr()
    wait_until(lambda: server.stat()["clients"] == 1, 30, "the children's regions are gone")
    after = server.stat()
    assert after["promised"] <= before["promised"] * 1.1 and after["used"] <= before["promised"] * 1.1, (before, after)
    assert program.end() == 0, program.stderr()


def test_a_hundred_forks_in_a_row(coal):
    done = coal([FORKS, "hundred"], stdin=b"\n", local="4M").must_succeed()
    assert done.out == b"filled\nforked\n"


@needs_coal
def test_fork_without_room_fails_with_enomem_and_the_parent_goes_on(coal, memserver):
    server = memserver(capacity="50M")
    done = coal([FORKS, "no-room"], local="4M", pool=server.address).must_succeed()
    assert done.out == b"ENOMEM\n"


def test_no_room_scene_forks_where_there_is_room(coal):
    assert coal([FORKS, "no-room"], local="4M").must_succeed().out == b"forked\n"


def test_raw_clone_gets_sigsegv_and_never_zeros(coal):
    done = coal([FORKS, "raw-clone"], local="4M").must_succeed()
    assert text(done.out).strip() == ("right" if PLAIN else "SEGV")


@pytest.mark.parametrize("scene, fills", [("child-sees", 2), ("parent-sees", 1), ("child-frees", 1), ("grandchildren", 2),
                                          ("siblings", 6), ("exec-after-fork", 1), ("exec-self", 1), ("vfork-exec", 1), ("spawn", 1),
                                          ("exit-in-child", 1), ("threaded", 1), ("while-evicting", 7), ("no-room", 2), ("raw-clone", 1)])
def test_one_wrong_byte_fails_the_scene(coal, scene, fills):
    for number in range(1, fills + 1):
        done = coal([FORKS, scene], env={"COAL_TEST_BREAK": str(number)}, plain=True)
        assert done.status == 1 and b"instead of" in done.err, f"fill {number} was wrong, and yet: {done!r}"
