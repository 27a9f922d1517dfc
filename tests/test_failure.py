# SPDX-License-Identifier: Apache-2.0
"""What a program sees when a memserver, the network or the program itself goes away, or when the room ends."""

import os
import re
import signal
import time

import pytest

from harness import APPS, is_managed, needs_coal, needs_preload, smaps, wait_until

pytestmark = [needs_preload, needs_coal]

STORE = APPS / "store"
BLOCKS = 64  # MiB stored
PAGES = BLOCKS * 255  # a block from malloc need not begin at a page: at least 255 whole pages a MiB


def started(coal_start, tmp_path, pool, local="8M", **options):
    """A store that holds BLOCKS MiB and has seen them right once."""
    store = coal_start([STORE], errors=tmp_path / "errors", pool=pool, local=local, **options)
    assert store.ask(f"fill {BLOCKS}") == f"filled {BLOCKS}", store.stderr()
    assert store.ask("verify") == f"right {BLOCKS}", store.stderr()
    return store


def probe(store, limit):
    answer = store.ask(f"probe {limit}")
    assert answer, f"the program ended: {store.process.wait(10)}\n{store.stderr()}"
    words = answer.split()
    return dict(zip(words[::2], map(int, words[1::2])))


def must_be_lost(found, bound_ms):
    """Some pages are resident and right, the others are SIGBUS in time, none reads anything else."""
    assert found["wrong"] == 0 and found["zero"] == 0, found
    assert found["sigbus"] > 0 and found["resident"] > 0, found
    assert found["ms"] <= bound_ms + 3000, found


def must_name_the_server_once(store, address):
    lines = [line for line in store.stderr().splitlines() if address in line and re.search(r"SIGBUS|lost", line)]
    assert len(lines) == 1, store.stderr()
    assert re.search(r"restart|start the|check|larger|see |run ", lines[0]), f"the line does not say what to do: {lines[0]}"


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_killed_memserver_is_sigbus_within_the_bound(coal_start, memserver, tmp_path, kind):
    server = memserver(listen="127.0.0.1:0" if kind == "tcp" else None)
    store = started(coal_start, tmp_path, server.address, fail_after="1")
    server.kill()
    must_be_lost(probe(store, 50), 1000)
    must_name_the_server_once(store, server.address)
    assert store.end() == 0


def test_program_without_a_handler_dies_of_sigbus(coal_start, memserver, tmp_path):
    server = memserver()
    store = started(coal_start, tmp_path, server.address, fail_after="0.5")
    server.kill()
    store.tell("verify")
    assert store.answer() is None
    assert store.process.wait(30) in (-signal.SIGBUS, 128 + signal.SIGBUS), store.stderr()


def test_resident_pages_stay_usable_after_the_loss(coal_start, memserver, tmp_path):
    server = memserver()
    store = started(coal_start, tmp_path, server.address, fail_after="0.5")
    server.kill()
    first = probe(store, 1)
    second = probe(store, 1)
    must_be_lost(first, 500)
    must_be_lost(second, 500)
    assert second["resident"] >= first["resident"] * 0.9, (first, second)


def test_restarted_memserver_is_not_taken_for_the_old_one(coal_start, memserver, tmp_path):
    server = memserver(listen="127.0.0.1:0")
    store = started(coal_start, tmp_path, server.address, fail_after="2")
    server.kill()
    memserver(listen=server.address)
    must_be_lost(probe(store, 50), 2000)


def test_memserver_that_stops_for_less_than_the_bound_costs_only_time(coal_start, memserver, tmp_path):
    server = memserver()
    store = started(coal_start, tmp_path, server.address, fail_after="20")
    server.signal(signal.SIGSTOP)
    store.tell("verify")
    time.sleep(1)  # the length of the fault that is injected, not a wait for anything
    server.signal(signal.SIGCONT)
    assert store.answer() == f"right {BLOCKS}", store.stderr()
    assert store.ask("rewrite") == f"rewritten {BLOCKS}"
    assert store.ask("verify") == f"right {BLOCKS}"


def test_memserver_that_stops_for_more_than_the_bound_is_sigbus(coal_start, memserver, tmp_path):
    server = memserver()
    store = started(coal_start, tmp_path, server.address, fail_after="1")
    server.signal(signal.SIGSTOP)
    try:
        must_be_lost(probe(store, 5), 1000)
    finally:
        server.signal(signal.SIGCONT)


@pytest.mark.parametrize("command", ["verify", "rewrite", "churn 4000 2"])
def test_network_cut_for_a_second_goes_unnoticed(coal_start, memserver, netpair, tmp_path, command):
    server = memserver(listen=f"{netpair.far_address}:0", insecure=True, prefix=netpair.inside(netpair.far))
    store = started(coal_start, tmp_path, server.address, fail_after="30", prefix=netpair.inside(netpair.near))
    store.tell(command)
    netpair.cut()
    time.sleep(1)  # the length of the cut
    netpair.mend()
    answer = store.answer()
    assert answer and answer.split()[0] in ("right", "rewritten", "churned"), store.stderr()
    assert store.ask("verify") == f"right {BLOCKS}", store.stderr()
    assert store.end() == 0


def test_network_cut_for_longer_than_the_bound_is_sigbus(coal_start, memserver, netpair, tmp_path):
    server = memserver(listen=f"{netpair.far_address}:0", insecure=True, prefix=netpair.inside(netpair.far))
    store = started(coal_start, tmp_path, server.address, fail_after="1", prefix=netpair.inside(netpair.near))
    netpair.cut()
    must_be_lost(probe(store, 5), 1000)
    must_name_the_server_once(store, server.address)


def test_memory_of_a_killed_client_is_free_after_the_lease(coal_start, memserver, tmp_path):
    server = memserver(lease=1)
    store = started(coal_start, tmp_path, server.address)
    stat = server.stat()
    assert stat["clients"] == 1 and stat["used"] >= (BLOCKS - 9) * 256
    os.kill(store.pid, signal.SIGKILL)
    wait_until(lambda: server.stat()["clients"] == 0, 30, "the client is gone from the memserver")
    assert server.stat()["promised"] == 0
    wait_until(lambda: server.stat()["used"] == 0, 30, "the frames are reaped, in steps")


def test_program_that_ends_gives_its_memory_back_at_once(coal_start, memserver, tmp_path):
    server = memserver(lease=300)
    store = started(coal_start, tmp_path, server.address)
    assert store.end() == 0
    wait_until(lambda: server.stat()["clients"] == 0, 30, "the client is gone from the memserver")
    wait_until(lambda: server.stat()["used"] == 0, 30, "the frames are reaped, in steps")


def test_malloc_fails_when_the_capacity_runs_out_and_the_rest_stays_right(coal_start, memserver, tmp_path):
    server = memserver(capacity="96M")
    store = coal_start([STORE], errors=tmp_path / "errors", pool=server.address, local="8M")
    answer = store.ask("fill 200")
    assert re.fullmatch(r"full \d+ ENOMEM", answer or ""), f"{answer}\n{store.stderr()}"
    stored = int(answer.split()[1])
    assert 60 <= stored <= 104, "most of the capacity is usable, and no more than that and the budget"
    assert store.ask("verify") == f"right {stored}"
    assert store.ask("rewrite") == f"rewritten {stored}"
    assert store.ask("verify") == f"right {stored}"
    assert store.end() == 0


def test_limit_for_one_client_refuses_like_a_full_memserver(coal_start, memserver, tmp_path):
    server = memserver(capacity="1G", max_client="64M")
    store = coal_start([STORE], errors=tmp_path / "errors", pool=server.address, local="8M")
    answer = store.ask("fill 200")
    assert re.fullmatch(r"full \d+ ENOMEM", answer or ""), f"{answer}\n{store.stderr()}"
    assert store.ask("verify") == f"right {answer.split()[1]}"


def test_pool_uses_its_memservers_in_proportion_to_their_capacity(coal_start, memserver, tmp_path):
    large, small = memserver(capacity="768M"), memserver(capacity="256M")
    started(coal_start, tmp_path, f"{large.address},{small.address}", local="4M")
    used = large.stat()["used"], small.stat()["used"]
    assert sum(used) >= (BLOCKS - 5) * 256
    assert 2 <= used[0] / max(1, used[1]) <= 4.5, used


def test_one_of_two_memservers_killed_leaves_the_pages_of_the_other(coal_start, memserver, tmp_path):
    stays, goes = memserver(), memserver()
    store = started(coal_start, tmp_path, f"{stays.address},{goes.address}", fail_after="1")
    goes.kill()
    found = probe(store, 1 << 20)
    must_be_lost(found, 1000)
    assert found["right"] - found["resident"] > PAGES / 5, found
    assert found["sigbus"] > PAGES / 5, found


def test_the_store_is_managed_memory(coal_start, memserver, tmp_path):
    """What all tests of this file rest on: the blocks are registered with userfaultfd and mostly not resident."""
    store = started(coal_start, tmp_path, memserver().address)
    managed = [r for r in smaps(store.pid) if is_managed(r)]
    assert sum(r["end"] - r["start"] for r in managed) >= BLOCKS << 20
    assert sum(r["rss"] for r in managed) <= (8 << 20) * 1.1
