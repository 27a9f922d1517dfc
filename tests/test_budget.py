# SPDX-License-Identifier: Apache-2.0
"""The promise on local memory, as the kernel counts it: resident bytes of managed ranges and of the pager's page buffers
together never above budget + max(64 pages, 1 %)."""

import time

import pytest

from harness import APPS, is_managed, needs_coal, needs_preload, smaps

pytestmark = [needs_preload, needs_coal]

PAGE = 4096


def is_page_buffer(r):
    """The pager's frames: anonymous memory kept out of children (madvise DONTFORK, which smaps shows as dc)."""
    return r["name"] in ("", "[anon:coal-frames]") and "dc" in r["flags"] and not is_managed(r)


def resident(pid):
    """Resident bytes of mappings, and of page buffers."""
    ranges = smaps(pid)
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
