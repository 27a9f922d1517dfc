# SPDX-License-Identifier: Apache-2.0
"""The memserver seen from the wire: regions, promises, leases, lanes, forks, stores, the key."""
import os
import signal
import socket
import subprocess

import pytest

import memclient
from memclient import LEASE, Client, Impostor, Memserver, Refused, page, run_memserver, wait_until

KEY = b"0123456789abcdef"


@pytest.fixture
def server(tmp_path):
    """A function that starts a memserver; all are ended with the test."""
    running = []

    def start(*options, **fields):
        running.append(Memserver(tmp_path, *options, **fields))
        return running[-1]

    yield start
    try:
        for one in running:
            one.finish()
    finally:
        for one in running:
            one.close()


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(0o600)
    return path


def refused(status, call, *args, **fields):
    with pytest.raises(Refused) as info:
        call(*args, **fields)
    assert info.value.status == status
    return info.value


# Regions

@pytest.mark.parametrize("threads", ["1", "3"])
def test_what_was_written_is_read_back(server, threads):
    with Client(server("--threads", threads).address) as c:
        c.reserve(10)
        c.write(5, page("a") + page("b"))
        assert c.read(5, 2) == page("a") + page("b")


def test_pages_of_a_vector_come_in_its_order(server):
    with Client(server().address) as c:
        c.reserve(10)
        c.call(memclient.WRITE, memclient.runs((7, 1), (1 << 35, 2)) + page("x") + page("y") + page("z"), count=2)
        _, data = c.call(memclient.READ, memclient.runs((1 << 35, 2), (7, 1), (7, 1)), count=3)
        assert data == page("y") + page("z") + page("x") + page("x")


def test_replies_come_in_the_order_of_pipelined_requests(server):
    with Client(server().address) as c:
        c.reserve(10)
        for n in range(10):
            c.send(memclient.WRITE, memclient.runs((n, 1)) + page(str(n)), count=1)
            c.send(memclient.READ, memclient.runs((n, 1)), count=1)
        for n in range(10):
            assert c.reply()[:2] == (memclient.WRITE, memclient.OK)
            assert c.reply()[4] == page(str(n))


def test_page_never_written_is_absent_and_the_connection_stays(server):
    with Client(server().address) as c:
        c.reserve(10)
        c.write(1, page("a"))
        refused(memclient.ABSENT, c.read, 0, 2)
        assert c.read(1) == page("a")


def test_discarded_page_is_absent(server):
    with Client(server().address) as c:
        c.reserve(10)
        c.write(0, page("a") * 3)
        c.discard((1, 1))
        refused(memclient.ABSENT, c.read, 1)
        assert c.read(2) == page("a")


def test_discard_takes_ranges_without_limit(server):
    with Client(server().address) as c:
        c.reserve(10)
        c.write(0, page("a"))
        c.write(1 << 33, page("b"))
        c.discard(*[(n << 32, (1 << 32) - 1) for n in range(16)])
        assert c.stat()["region_pages"] == 0


def test_ping_returns_its_bytes(server):
    with Client(server().address) as c:
        assert c.call(memclient.PING, b"hello")[1] == b"hello"


def test_clients_see_only_their_own_pages(server):
    memserver = server()
    with Client(memserver.address) as a, Client(memserver.address) as b:
        a.reserve(1)
        b.reserve(1)
        a.write(0, page("a"))
        refused(memclient.ABSENT, b.read, 0)


# Promises

def test_promise_ends_at_the_capacity(server):
    with Client(server(capacity="1M").address) as c:
        assert c.capacity == 256
        refused(memclient.NOSPACE, c.reserve, 257)
        assert c.reserve(256) == 256
        refused(memclient.NOSPACE, c.reserve, 1)


def test_promises_of_all_clients_stay_within_the_capacity(server):
    memserver = server(capacity="1M")
    with Client(memserver.address) as a, Client(memserver.address) as b:
        a.reserve(200)
        refused(memclient.NOSPACE, b.reserve, 57)
        assert b.reserve(56) == 56


def test_one_client_gets_no_more_than_its_limit(server):
    with Client(server("--max-client", "1M").address) as c:
        assert c.capacity == 256
        assert refused(memclient.QUOTA, c.reserve, 257).arg == 0
        assert c.reserve(256) == 256


def test_write_beyond_the_promise_is_refused_whole(server):
    with Client(server().address) as c:
        c.reserve(2)
        refused(memclient.NOSPACE, c.write, 0, page("a") * 3)
        assert c.stat()["region_pages"] == 0


def test_what_was_promised_can_always_be_written(server):
    with Client(server(capacity="1M").address) as c:
        c.reserve(256)
        for round_ in range(3):
            c.write(0, page(str(round_)) * 256)
            c.discard((0, 256))
        c.write(1000, page("z") * 256)
        assert c.read(1255) == page("z")


def test_promise_given_back_serves_others(server):
    memserver = server(capacity="1M")
    with Client(memserver.address) as a, Client(memserver.address) as b:
        a.reserve(256)
        assert a.reserve(-100) == 156
        assert b.reserve(100) == 100


def test_promise_never_falls_below_what_is_held(server):
    with Client(server().address) as c:
        c.reserve(10)
        c.write(0, page("a") * 3)
        assert c.reserve(-(1 << 63)) == 3


# Leases and lanes

def test_client_goes_on_with_its_token_within_the_lease(server):
    memserver = server()
    with Client(memserver.address) as c:
        c.reserve(5)
        c.write(0, page("kept"))
    with Client(memserver.address, token=c.token) as again:
        assert (again.token, again.region, again.promised) == (c.token, c.region, 5)
        assert again.read(0) == page("kept")


def test_killed_client_gives_its_memory_back_after_the_lease(server):
    memserver = server("--lease", "0.3", capacity="1M")
    with Client(memserver.address) as watcher:
        with Client(memserver.address) as c:
            c.reserve(256)
            c.write(0, page("a") * 256)
        wait_until(lambda: watcher.stat()["promised"] == 0)
        wait_until(lambda: watcher.stat()["used"] == 0)
        assert watcher.reserve(256) == 256


def test_client_that_wants_no_lease_is_freed_with_its_last_connection(server):
    memserver = server("--lease", "600")
    with Client(memserver.address) as watcher:
        other = Client(memserver.address)
        other.close()  # its lease, ten minutes, begins before the one that is to end at once
        with Client(memserver.address) as c:
            c.reserve(7)
            assert c.call(LEASE, arg=0)[0] == 0
            assert watcher.stat()["clients"] == 3
        wait_until(lambda: watcher.stat()["clients"] == 2)
        assert watcher.stat()["promised"] == 0


def test_a_lease_can_only_be_made_shorter(server):
    memserver = server("--lease", "2")
    with Client(memserver.address) as c:
        assert c.call(LEASE, arg=1 << 40)[0] == 2000
        assert c.call(LEASE, arg=500)[0] == 500


def test_token_is_gone_after_the_lease(server):
    memserver = server("--lease", "0.1")
    with Client(memserver.address) as watcher:
        Client(memserver.address).close()
        with Client(memserver.address) as c:
            pass
        wait_until(lambda: watcher.stat()["clients"] == 1)
        refused(memclient.GONE, Client, memserver.address, token=c.token)


def test_token_of_an_earlier_instance_is_gone(server, tmp_path):
    first = server()
    with Client(first.address) as c:
        pass
    first.stop()
    second = server()
    with Client(second.address, attach=False) as again:
        assert again.instance != c.instance
        refused(memclient.GONE, again.attach, c.token)


def test_attached_client_keeps_its_memory_however_long_it_is_silent(server):
    memserver = server("--lease", "0.1")
    with Client(memserver.address) as c, Client(memserver.address) as other:
        c.reserve(1)
        c.write(0, page("a"))
        other.close()
        with Client(memserver.address) as watcher:
            wait_until(lambda: watcher.stat()["clients"] == 2)
        assert c.read(0) == page("a")


def test_bye_frees_at_once(server):
    memserver = server()
    with Client(memserver.address) as watcher:
        c = Client(memserver.address)
        c.reserve(10)
        c.bye()
        assert watcher.stat()["promised"] == 0
        assert watcher.stat()["clients"] == 1


def test_bye_ends_the_other_lanes(server):
    memserver = server()
    with Client(memserver.address) as c, Client(memserver.address, token=c.token, lane=1) as second:
        c.bye()
        assert second.ended()


def test_lanes_share_the_region(server):
    memserver = server()
    with Client(memserver.address) as c, Client(memserver.address, token=c.token, lane=7) as second:
        c.reserve(1)
        c.write(0, page("a"))
        assert second.read(0) == page("a")
        assert c.read(0) == page("a")


@pytest.mark.parametrize("threads", ["1", "2"])
def test_new_connection_of_a_lane_fences_the_old(server, threads):
    memserver = server("--threads", threads)
    with Client(memserver.address) as old:
        old.reserve(2)
        old.write(0, page("old"))
        with Client(memserver.address, token=old.token) as new:
            try:
                old.send(memclient.WRITE, memclient.runs((0, 1)) + page("late"), count=1)
            except ConnectionError:
                pass
            assert old.ended()
            assert new.read(0) == page("old")
            new.write(0, page("new"))
            assert new.read(0) == page("new")


# Forks

def test_fork_is_a_snapshot_in_both_directions(server):
    memserver = server()
    with Client(memserver.address) as parent:
        parent.reserve(10)
        parent.write(0, page("before") * 3)
        ticket = parent.fork()
        parent.write(0, page("parent"))
        parent.discard((1, 1))
        with Client(memserver.address, token=ticket) as child:
            assert child.promised == 10
            assert child.read(0, 3) == page("before") * 3
            child.write(2, page("child"))
            assert parent.read(2) == page("before")
            assert child.region != parent.region


def test_fork_of_a_fork(server):
    memserver = server()
    with Client(memserver.address) as parent:
        parent.reserve(1)
        parent.write(0, page("a"))
        with Client(memserver.address, token=parent.fork()) as child:
            ticket = child.fork()
            child.write(0, page("b"))
            with Client(memserver.address, token=ticket) as grandchild:
                assert grandchild.read(0) == page("a")


def test_fork_takes_no_frames_but_its_promise(server):
    with Client(server(capacity="1M").address) as c:
        c.reserve(128)
        c.write(0, page("a") * 128)
        c.fork()
        assert c.stat()["used"] == 128
        assert c.stat()["promised"] == 256
        refused(memclient.NOSPACE, c.fork)


def test_child_outlives_its_parent(server):
    memserver = server()
    parent = Client(memserver.address)
    parent.reserve(1)
    parent.write(0, page("a"))
    with Client(memserver.address, token=parent.fork()) as child:
        parent.bye()
        assert child.read(0) == page("a")


def test_ticket_lives_as_long_as_its_parent(server):
    memserver = server("--lease", "0.1")
    with Client(memserver.address) as parent:
        ticket = parent.fork()
        with Client(memserver.address):
            pass
        wait_until(lambda: parent.stat()["clients"] == 2)
        with Client(memserver.address, token=ticket) as child:
            assert child.region


def test_ticket_ends_a_lease_after_its_parent(server):
    memserver = server("--lease", "0.1")
    with Client(memserver.address) as watcher:
        parent = Client(memserver.address)
        parent.reserve(5)
        parent.fork()
        parent.bye()
        wait_until(lambda: watcher.stat()["clients"] == 1)
        assert watcher.stat()["promised"] == 0


def test_drop_frees_the_child(server):
    with Client(server().address) as c:
        c.reserve(5)
        ticket = c.fork()
        c.call(memclient.DROP, ticket)
        assert c.stat()["promised"] == 5


def test_drop_of_one_that_is_gone_is_ok(server):
    with Client(server().address) as c:
        c.call(memclient.DROP, os.urandom(16))


def test_drop_ends_the_connections_of_an_attached_child(server):
    memserver = server()
    with Client(memserver.address) as c, Client(memserver.address, token=c.fork()) as child:
        c.call(memclient.DROP, child.token)
        assert child.ended()
        assert c.stat()["clients"] == 1


# Stores

def test_memory_follows_what_is_held(server):
    memserver = server(capacity="256M")
    with Client(memserver.address) as c:
        before = memserver.rss()
        c.reserve(64 << 8)
        assert memserver.rss() < before + (4 << 20)
        for n in range(512):
            c.write(n << 5, os.urandom(4096) * 32)
        assert memserver.rss() > before + (60 << 20)
        c.discard((0, 64 << 8))
        wait_until(lambda: memserver.rss() < before + (8 << 20))
        assert c.stat()["region_promised"] == 64 << 8


def test_file_store_serves(server, tmp_path):
    memserver = server("--store", f"file:{tmp_path}/store")
    with Client(memserver.address) as c:
        c.reserve(600)
        for n in range(2):
            c.write(256 * n, b"".join(page(f"{n} {i} ") for i in range(256)))
        assert c.read(256 + 77) == page("1 77 ")
        c.discard((0, 600))
        refused(memclient.ABSENT, c.read, 300)


def test_file_store_never_overwrites_a_file(tmp_path):
    (tmp_path / "store").write_text("precious")
    done = run_memserver("--listen", f"unix:{tmp_path}/s", "--capacity", "1M", "--store", f"file:{tmp_path}/store")
    assert done.returncode == 1
    assert "remove it or choose another path" in done.stderr
    assert (tmp_path / "store").read_text() == "precious"


def test_full_disk_refuses_the_promise_not_the_write(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"needs the right to mount a small file system: {mount.stderr.strip()}")
    try:
        with Memserver(tmp_path, "--store", f"file:{disk}/store") as memserver, Client(memserver.address) as c:
            refused(memclient.NOSPACE, c.reserve, 4096)
            c.reserve(1024)
            for n in range(4):
                c.write(n << 8, page("a") * 256)
            assert c.read(1023) == page("a")
    finally:
        subprocess.run(["umount", disk], check=True)


# The key

def test_both_sides_prove_the_key(server, key_file):
    with Client(server("--key", key_file).address, key=KEY) as c:
        assert c.region


def test_client_with_another_key_is_refused(server, key_file):
    memserver = server("--key", key_file)
    with Client(memserver.address, hello=False) as c:
        c.key = b"another key, also long"
        with pytest.raises(Impostor):
            c.hello()
        refused(memclient.EAUTH, c.call, memclient.AUTH, bytes(32))
        assert c.ended()
    memserver.wait_log(r"bad-proof")


def test_client_without_a_key_is_refused(server, key_file):
    refused(memclient.EAUTH, Client, server("--key", key_file).address)


def test_client_notices_a_memserver_without_the_key(server):
    with pytest.raises(Impostor):
        Client(server().address, key=KEY)


def test_nothing_is_served_before_the_proof(server, key_file):
    memserver = server("--key", key_file)
    with Client(memserver.address, hello=False) as c:
        refused(memclient.EAUTH, c.call, memclient.ATTACH, bytes(56))
        assert c.ended()
    memserver.wait_log(r"no-proof")


def test_proof_of_one_connection_is_worthless_on_another(server, key_file):
    memserver = server("--key", key_file)
    with Client(memserver.address, key=KEY, attach=False):
        pass
    nonces = set()
    for _ in range(2):
        with Client(memserver.address, hello=False) as c:
            _, data = c.call(memclient.HELLO, bytes.fromhex("0100010000000000") + bytes(32))
            nonces.add(data[24:56])
    assert len(nonces) == 2


# Beginning and end

def test_listens_on_all_addresses_given(server, tmp_path):
    memserver = server(listen=("127.0.0.1:0", f"unix:{tmp_path}/s", "localhost:0"))
    assert len(memserver.addresses) >= 3
    for address in memserver.addresses:
        with Client(address) as c:
            assert c.region


def test_listens_on_ipv6(server):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError as e:
            pytest.skip(f"this machine has no IPv6 loopback: {e}")
    with Client(server(listen=("[::1]:0",)).address) as c:
        assert c.region


def test_unix_socket_is_private_and_removed_at_the_end(server, tmp_path):
    path = tmp_path / "s"
    memserver = server(listen=(f"unix:{path}",))
    assert path.stat().st_mode & 0o777 == 0o600
    assert memserver.stop() == 0
    assert not path.exists()


def test_stale_unix_socket_is_replaced(server, tmp_path):
    memserver = server(listen=(f"unix:{tmp_path}/s",))
    memserver.stop(signal.SIGKILL)
    assert (tmp_path / "s").exists()
    with Client(server(listen=(f"unix:{tmp_path}/s",)).address) as c:
        assert c.region


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("threads", ["1", "2"])
def test_ends_on_a_signal_with_status_0(server, sig, threads):
    memserver = server("--threads", threads)
    with Client(memserver.address) as c:
        assert memserver.stop(sig) == 0
        assert c.ended()


def test_requests_received_before_the_signal_are_answered(server, tmp_path):
    memserver = server(listen=(f"unix:{tmp_path}/s",))
    with Client(memserver.address) as c:
        c.reserve(256)
        c.write(0, page("a") * 256)
        # The replies are more than the socket holds, so most of them can go out only while the memserver drains.
        for _ in range(20):
            c.send(memclient.READ, memclient.runs((0, 256)), count=1)
        memserver.process.send_signal(signal.SIGTERM)
        for _ in range(20):
            assert len(c.reply()[4]) == 256 * 4096
        assert c.ended()
    assert memserver.process.wait(20) == 0


def test_peer_that_never_reads_delays_the_end_by_some_seconds_only(server):
    memserver = server()
    with Client(memserver.address) as c:
        c.reserve(256)
        c.write(0, page("a") * 256)
        for _ in range(40):
            c.send(memclient.READ, memclient.runs((0, 256)), count=1)
        assert memserver.stop() == 0


def test_once_ends_with_its_input_and_last_client(server):
    memserver = server("--once", "--lease", "0.2", stdin=subprocess.PIPE)
    with Client(memserver.address) as c:
        memserver.process.stdin.close()
        assert c.call(memclient.PING, b"still here")[1] == b"still here"
        assert memserver.process.poll() is None
    assert memserver.process.wait(20) == 0


def test_once_waits_for_its_input(server):
    memserver = server("--once", stdin=subprocess.PIPE)
    Client(memserver.address).bye()
    with Client(memserver.address) as c:
        assert c.region
        c.bye()
    memserver.process.stdin.close()
    assert memserver.process.wait(20) == 0


def test_metrics_tell_what_happened(server):
    memserver = server("--metrics", "127.0.0.1:0", capacity="1M")
    with Client(memserver.address) as c:
        c.reserve(10)
        c.write(0, page("a") * 2)
        c.read(0)
        refused(memclient.NOSPACE, c.reserve, 1000)
        metrics = memserver.metrics()
    expected = {
        "memserver_capacity_bytes": 1 << 20, "memserver_promised_bytes": 10 * 4096, "memserver_used_bytes": 2 * 4096,
        "memserver_clients": 1, "memserver_connections": 1, 'memserver_requests_total{op="write"}': 1,
        'memserver_requests_total{op="reserve"}': 2, "memserver_written_pages_total": 2, "memserver_read_pages_total": 1,
        'memserver_refused_total{status="nospace"}': 1, 'memserver_refused_total{status="quota"}': 0,
    }
    assert {name: metrics.get(name) for name in expected} == expected
    assert metrics["memserver_received_bytes_total"] > 2 * 4096
    assert metrics["memserver_sent_bytes_total"] > 4096
