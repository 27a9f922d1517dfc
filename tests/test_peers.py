# SPDX-License-Identifier: Apache-2.0
"""Peers are measured on the same walk as ours, keep the same budget, and leave nothing behind however a run ends."""
import glob
import json
import os
import signal
import subprocess
import sys

import pytest

REPOSITORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
BUILD = os.path.join(REPOSITORY, os.environ.get("COAL_BUILD", "build"))
BENCH = os.path.join(REPOSITORY, "bench")
sys.path.insert(0, BENCH)
import peers  # noqa: E402  pylint: disable=wrong-import-position

PAGES, LOCAL = 8192, 8 << 20
HOLD = """import sys, peers
with peers.PEERS[sys.argv[1]](8 << 20, 2 << 20):
    print('ready', flush=True)
    sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(bool(os.environ.get("COAL_SANITIZED")), reason="pflat measures; it has no sanitized build")


def traces(pid):
    """What a run of that process has made and not removed."""
    name = f"coal-bench-{pid}"
    found = glob.glob(f"/run/{name}") + glob.glob(f"/sys/fs/cgroup/*/{name}") + glob.glob(f"/sys/fs/cgroup/{name}")
    found += [path for path in glob.glob("/sys/block/loop*/loop/backing_file") if name in peers.read(path)]
    found += [line for line in peers.read("/proc/self/mountinfo").splitlines() if name in line]
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            found += [path] if name in peers.read(path) else []
        except OSError:  # it has just ended
            pass
    return found


def system_state():
    return peers.read("/proc/swaps").splitlines()[1:], sorted(glob.glob("/sys/block/zram*")), peers.read(peers.PAGE_CLUSTER)


@pytest.fixture(name="untouched")
def fixture_untouched():
    """Swap space, zram devices and the readahead setting are after a test what they were before."""
    peers.sweep()
    before = system_state()
    yield
    assert system_state() == before


@pytest.mark.parametrize("name", list(peers.PEERS))
def test_peer_faults_at_every_access_and_keeps_the_budget(name, untouched):
    try:
        with peers.PEERS[name](PAGES * 4096, LOCAL) as ready:
            result = subprocess.run([os.path.join(BUILD, "pflat"), "--json", "--pages", str(PAGES), "--local", str(LOCAL),
                                     "--faults", "3000", *ready.options], preexec_fn=ready.enter, stdout=subprocess.PIPE,
                                    check=True, timeout=100)
    except peers.Skip as reason:
        pytest.skip(str(reason))
    document = json.loads(result.stdout)
    assert document["faults"] == 3000
    assert document["pager"]["faults_read"] > 2500
    # The control group also holds what pflat itself needs, so the area gets a little less or more than its budget.
    assert LOCAL / 2 < document["pager"]["resident_bytes_at_start"] < LOCAL + 2 * peers.PROCESS_BYTES
    assert not traces(os.getpid())


@pytest.fixture(name="holder")
def fixture_holder(request, untouched):
    """A process that has set a peer up and waits."""
    with subprocess.Popen([sys.executable, "-c", HOLD, request.param], env={**os.environ, "PYTHONPATH": BENCH},
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout.readline() != "ready\n":
                pytest.skip(process.communicate(timeout=60)[1].strip().splitlines()[-1])
            yield process
        finally:
            process.kill()
            process.wait()
            peers.sweep()


@pytest.mark.parametrize("holder", list(peers.PEERS), indirect=True)
def test_interrupted_run_leaves_nothing(holder):
    assert traces(holder.pid)
    holder.send_signal(signal.SIGINT)
    holder.wait(timeout=60)
    assert not traces(holder.pid)


@pytest.mark.parametrize("holder", list(peers.PEERS), indirect=True)
def test_next_run_removes_what_a_killed_one_left(holder):
    holder.kill()
    holder.wait(timeout=60)
    assert traces(holder.pid)
    peers.sweep()
    assert not traces(holder.pid)


@pytest.mark.parametrize("holder", ["zram"], indirect=True)
def test_sweep_leaves_a_run_that_goes_on_alone(holder):
    peers.sweep()
    assert traces(holder.pid)


def test_missing_program_is_named_with_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(peers.Skip, match="no nbdkit: apt-get install nbdkit"):
        with peers.fuse(8 << 20, LOCAL):
            pass


def test_other_users_than_root_are_refused(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(peers.Skip, match="only root"):
        with peers.zram(8 << 20, LOCAL):
            pass
