# SPDX-License-Identifier: Apache-2.0
"""The promise on local memory, as the kernel counts it: resident bytes of managed ranges and of the pager's page buffers
together never above budget + max(64 pages, 1 %)."""

import re
import time

import pytest

from harness import APPS, is_managed, needs_coal, needs_preload, smaps

pytestmark = [needs_preload, needs_coal]

PAGE = 4096
FRAMES = re.compile(r"frames at ([0-9a-f]+)-([0-9a-f]+)")


def page_buffers(store):
    """Where the pager keeps its frames: by name where the kernel names anonymous memory, else by the pager's debug log."""
    ranges = [(int(a, 16), int(b, 16)) for a, b in FRAMES.findall(store.stderr())]
    assert ranges, f"the pager did not say where its frames are: {store.stderr()[:2000]}"
    return ranges


def resident(pid, buffers):
    """Bytes of pages that the pager answers for."""
    total = 0
    for r in smaps(pid):
        inside = any(r["start"] < end and r["end"] > start for start, end in buffers)
        if is_managed(r) or inside or r["name"] == "[anon:coal-frames]":
            total += r["rss"]
    return total


@pytest.mark.parametrize("budget, threads", [(2, 2), (16, 1), (16, 4), (64, 2)])
def test_resident_bytes_stay_below_the_budget_under_load(coal_start, tmp_path, budget, threads):
    store = coal_start([APPS / "store"], errors=tmp_path / "errors", local=f"{budget}M", env={"COAL_LOG": "debug"})
    limit = (budget << 20) + max(64 * PAGE, (budget << 20) // 100)
    pid = store.pid
    buffers = page_buffers(store)
    samples = []

    def sample_until_answer(command):
        store.tell(command)
        end = time.monotonic() + 60
        while not store.ready() and time.monotonic() < end:
            samples.append(resident(pid, buffers))
        return store.answer()

    assert sample_until_answer("fill 160") == "filled 160"
    assert sample_until_answer(f"churn 3000 {threads}").startswith("churned")
    assert sample_until_answer("verify") == "right 160"
    assert len(samples) >= 20
    assert max(samples) <= limit, f"{max(samples) >> 10} KiB resident, {limit >> 10} KiB allowed"
    assert max(samples) >= (budget << 20) // 2, "the budget is not used"
    assert store.end() == 0
