# SPDX-License-Identifier: Apache-2.0
"""The promise on local memory, as the kernel counts it: resident bytes of managed ranges and of the pager's page buffers
together never above budget + max(64 pages, 1 %)."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from harness import APPS, is_managed, needs_coal, needs_preload, smaps, wait_until

pytestmark = [needs_preload, needs_coal]

PAGE = 4096


def is_page_buffer(r):
    """The pager's frames: anonymous memory kept out of children (madvise DONTFORK, which smaps shows as dc)."""
    return r["name"] in ("", "[anon:coal-frames]") and "dc" in r["flags"] and not is_managed(r)


def all_stopped(pid):
    return all(re.search(r"\) ([A-Z])", stat.read_text())[1] == "T" for stat in Path(f"/proc/{pid}/task").glob("*/stat"))


def resident(pid):
    """Resident bytes of mappings, and of page buffers. The process is stopped meanwhile: the kernel walks smaps range by range,
    and a page that moves from one that it has not seen to one that it has seen would count for nothing or twice."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: all_stopped(pid), 20, "all threads have stopped")
        ranges = smaps(pid)
    finally:
        os.kill(pid, signal.SIGCONT)
    return sum(r["rss"] for r in ranges if is_managed(r)), sum(r["rss"] for r in ranges if is_page_buffer(r))


@pytest.mark.parametrize("budget, threads", [(2, 2), (16, 1), (16, 4), (64, 2)])
def test_resident_bytes_stay_below_the_budget_under_load(coal_start, tmp_path, budget, threads):
    store = coal_start([APPS / "store"], errors=tmp_path / "errors", local=f"{budget}M")
    limit = (budget << 20) + max(64 * PAGE, (budget << 20) // 100)
    pid = store.pid
    samples = []

    def sample_until_answer(command):
        store.tell(command)
        end = time.monotonic() + 60
        while not store.ready() and time.monotonic() < end:
            samples.append(resident(pid))
            time.sleep(0.02)  # let it run between two samples
        return store.answer()

    assert sample_until_answer("fill 160") == "filled 160"
    assert sample_until_answer(f"churn 3000 {threads}").startswith("churned")
    assert sample_until_answer("verify") == "right 160"
    assert len(samples) >= 20
    highest = max(sum(sample) for sample in samples)
    assert highest <= limit, f"{highest >> 10} KiB resident, {limit >> 10} KiB allowed"
    assert highest >= (budget << 20) // 2, "the budget is not used"
    assert max(buffers for _, buffers in samples) > 0, "the page buffers were not found in /proc/PID/smaps"
    assert store.end() == 0
