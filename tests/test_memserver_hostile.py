# SPDX-License-Identifier: Apache-2.0
"""Hostile or careless peers of the memserver: each loses its connection, with a named reason; others notice nothing."""
import os
import random
import re
import resource
import socket
import struct
import time

import pytest

import memclient
from memclient import Client, Memserver, dial, message, page, runs, wait_until


@pytest.fixture(scope="module")
def memserver(tmp_path_factory):
    with Memserver(tmp_path_factory.mktemp("hostile"), "--metrics", "127.0.0.1:0") as one:
        yield one


@pytest.fixture
def bystander(memserver):
    """Another client, which must find its page unharmed at the end of the test."""
    with Client(memserver.address) as c:
        c.reserve(1)
        c.write(0, page("mine"))
        yield c
        assert c.read(0) == page("mine")
        c.bye()


@pytest.fixture
def ends_as(memserver):
    """ends_as(reason): wait until one more connection has ended for this reason, and said so in the log."""
    before = memserver.metrics()

    def check(reason):
        name = f'memserver_connections_ended_total{{reason="{reason}"}}'
        wait_until(lambda: memserver.metrics()[name] > before[name])
        memserver.wait_log(re.escape(f"({reason})"))

    return check


def attached(memserver):
    c = Client(memserver.address)
    c.reserve(4)
    c.write(0, page("a"))
    return c


class Stalled:
    """A client that asks for much and reads nothing."""

    def __init__(self, memserver):
        self.client = Client(memserver.address)
        self.client.reserve(256)
        self.client.write(0, os.urandom(4096) * 256)
        self.before = memserver.rss()
        request = message(memclient.READ, runs((0, 256)), count=1, region=self.client.region) * 100
        self.client.sock.settimeout(1)
        with pytest.raises(TimeoutError):
            while True:
                self.client.sock.sendall(request)
        self.after = memserver.rss()


@pytest.fixture(scope="module", autouse=True)
def slow(memserver):
    """Peers that are ended after some time: begun with the first test here, looked at by the last ones."""
    silent, half, stalled = dial(memserver.address), dial(memserver.address), Stalled(memserver)
    half.sendall(message(memclient.HELLO, bytes(40))[:40])
    yield {"silent": silent, "half": half, "stalled": stalled}
    for sock in (silent, half, stalled.client.sock):
        sock.close()


BAD = {
    # name: (status, reason, header fields and payload)
    "unknown operation": (memclient.EBADMSG, "bad-op", dict(op=99)),
    "another client's region": (memclient.EREGION, "bad-region",
                                dict(op=memclient.READ, payload=runs((0, 1)), count=1, region=1 << 30)),
    "no region": (memclient.EREGION, "bad-region", dict(op=memclient.STAT, region=0)),
    "status in a request": (memclient.EBADMSG, "bad-header", dict(op=memclient.STAT, status=1)),
    "arg without meaning": (memclient.EBADMSG, "bad-header", dict(op=memclient.STAT, arg=1)),
    "count without vector": (memclient.EBADMSG, "bad-header", dict(op=memclient.PING, count=1)),
    "no runs": (memclient.EBADMSG, "bad-vector", dict(op=memclient.READ)),
    "too many runs": (memclient.EBADMSG, "bad-vector", dict(op=memclient.DISCARD, payload=runs((0, 1)) * 257, count=257)),
    "an empty run": (memclient.EBADMSG, "bad-vector", dict(op=memclient.READ, payload=runs((0, 0)), count=1)),
    "too many pages": (memclient.EBADMSG, "bad-vector", dict(op=memclient.READ, payload=runs((0, 257)), count=1)),
    "huge run": (memclient.EBADMSG, "bad-vector", dict(op=memclient.READ, payload=runs((0, (1 << 32) - 1)), count=1)),
    "huge length": (memclient.EBADMSG, "bad-length", dict(op=memclient.WRITE, count=1, length=(1 << 32) - 1)),
    "huge ping": (memclient.EBADMSG, "bad-length", dict(op=memclient.PING, length=1 << 20)),
    "length of another vector": (memclient.EBADMSG, "bad-length",
                                 dict(op=memclient.READ, payload=runs((0, 1), (1, 1)), count=1)),
    "fewer pages than the runs say": (memclient.EBADMSG, "bad-length",
                                      dict(op=memclient.WRITE, payload=runs((0, 2)) + bytes(4096), count=1)),
    "page beyond the region": (memclient.ERANGE, "bad-range", dict(op=memclient.READ, payload=runs((1 << 36, 1)), count=1)),
    "run over the end": (memclient.ERANGE, "bad-range",
                         dict(op=memclient.DISCARD, payload=runs(((1 << 36) - 1, 2)), count=1)),
    "run that wraps around": (memclient.ERANGE, "bad-range",
                              dict(op=memclient.DISCARD, payload=runs(((1 << 64) - 1, 2)), count=1)),
    "second hello": (memclient.EBADMSG, "out-of-order", dict(op=memclient.HELLO, payload=bytes(40))),
    "second attach": (memclient.EBADMSG, "out-of-order", dict(op=memclient.ATTACH, payload=bytes(56))),
    "key where none is asked": (memclient.EBADMSG, "out-of-order", dict(op=memclient.AUTH, payload=bytes(32))),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_request_is_answered_and_ends_the_connection(memserver, bystander, ends_as, name):
    status, reason, fields = BAD[name]
    with attached(memserver) as c:
        fields = {"region": c.region, **fields}
        c.sock.sendall(message(fields.pop("op"), fields.pop("payload", b""), tag=77, **fields))
        _, got, tag, _, _ = c.reply()
        assert (got, tag) == (status, 77)
        assert c.ended()
    ends_as(reason)


def test_nothing_of_a_malformed_write_is_stored(memserver, bystander):
    with attached(memserver) as c:
        payload = runs((0, 1), (1 << 36, 1)) + page("b") * 2
        with pytest.raises(memclient.Refused):
            c.call(memclient.WRITE, payload, count=2)
        with Client(memserver.address, token=c.token) as again:
            assert again.read(0) == page("a")


def test_unknown_version(memserver, bystander, ends_as):
    with Client(memserver.address, hello=False) as c:
        with pytest.raises(memclient.Refused) as info:
            c.call(memclient.HELLO, struct.pack("<HHI", 2, 9, 0) + bytes(32))
        assert info.value.status == memclient.EVERSION
        assert c.ended()
    ends_as("bad-version")


def test_unknown_lane(memserver, bystander, ends_as):
    with Client(memserver.address, attach=False) as c:
        with pytest.raises(memclient.Refused) as info:
            c.attach(lane=8)
        assert info.value.status == memclient.EBADMSG
    ends_as("bad-lane")


def test_request_before_hello(memserver, bystander, ends_as):
    with Client(memserver.address, hello=False) as c:
        with pytest.raises(memclient.Refused):
            c.call(memclient.STAT)
        assert c.ended()
    ends_as("out-of-order")


def test_not_our_protocol(memserver, bystander, ends_as):
    with dial(memserver.address) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: memserver.example\r\n\r\n")
        while sock.recv(4096):
            pass
    ends_as("bad-magic")


def test_close_in_the_middle_of_a_message(memserver, bystander, ends_as):
    with attached(memserver) as c:
        c.sock.sendall(message(memclient.WRITE, runs((0, 1)) + bytes(100), count=1, region=c.region, length=16 + 4096))
    ends_as("truncated")


def test_random_bytes(memserver, bystander):
    rng = random.Random(1)
    for n in range(200):
        with dial(memserver.address) as sock:
            try:
                sock.sendall(rng.randbytes(rng.randrange(1, 20000)))
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            except ConnectionError:
                pass


def test_valid_requests_with_random_damage(memserver, bystander):
    rng = random.Random(2)
    for n in range(300):
        with attached(memserver) as c:
            good = bytearray(b"".join([
                message(memclient.WRITE, runs((0, 1), (2, 1)) + page("x") * 2, count=2, region=c.region),
                message(memclient.READ, runs((0, 1)), count=1, region=c.region),
                message(memclient.RESERVE, region=c.region, arg=3),
                message(memclient.DISCARD, runs((0, 9)), count=1, region=c.region),
            ]))
            for _ in range(rng.randrange(1, 4)):
                good[rng.choice((rng.randrange(32), rng.randrange(len(good))))] = rng.randrange(256)
            try:
                c.sock.sendall(good)
                c.sock.shutdown(socket.SHUT_WR)
                c.ended()
            except ConnectionError:
                pass
            with Client(memserver.address, token=c.token) as again:
                again.bye()


def test_thousand_silent_connections_do_not_hinder_others(memserver, bystander):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip(f"needs 1200 file descriptors, the limit here is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    silent = []
    try:
        for _ in range(1000):
            silent.append(dial(memserver.address))
        with attached(memserver) as c:
            for n in range(200):
                assert c.read(0) == page("a")
            c.bye()
        for sock in silent:
            assert sock.recv(1) == b""
    finally:
        for sock in silent:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_connections_than_descriptors(tmp_path):
    """The memserver keeps some descriptors for itself, says BUSY to the rest, and serves on."""
    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    with Memserver(tmp_path, preexec_fn=few) as one, Client(one.address) as c:
        crowd = [dial(one.address) for _ in range(40)]
        try:
            _, status, *_ = wait_until(lambda: _busy_reply(crowd))
            assert status == memclient.BUSY
            assert c.call(memclient.PING, b"alive")[1] == b"alive"
        finally:
            for sock in crowd:
                sock.close()
        one.wait_log(r"\(busy\)")
        wait_until(lambda: _can_attach(one.address))


def _busy_reply(crowd):
    for sock in crowd:
        sock.settimeout(0.05)
        try:
            data = sock.recv(32)
        except TimeoutError:
            continue
        if len(data) == 32:
            _, op, status, *_ = memclient.HEADER.unpack(data)
            return op, status
    return None


def _can_attach(address):
    try:
        Client(address).bye()
        return True
    except (memclient.Refused, OSError, EOFError):
        return False


def test_discard_storm_does_not_hinder_others(memserver, bystander):
    with Client(memserver.address) as c:
        c.reserve(8192)
        for n in range(32):
            c.write(n << 8, page("s") * 256)
        start = time.monotonic()
        for _ in range(300):
            c.send(memclient.DISCARD, runs(*[(0, (1 << 32) - 1)] * 256), count=256)
        assert bystander.read(0) == page("mine")
        assert time.monotonic() - start < 20
        for _ in range(300):
            assert c.reply()[1] == memclient.OK
        c.bye()


@pytest.mark.parametrize("which", ["silent", "half"])
def test_connection_without_a_whole_handshake_is_ended(memserver, slow, which):
    assert slow[which].recv(1) == b""
    memserver.wait_log(r"\(handshake-timeout\)")


def test_memory_stays_bounded_while_replies_are_not_read(slow):
    assert slow["stalled"].after < slow["stalled"].before + (16 << 20)


def test_client_that_never_reads_replies_is_ended(memserver, bystander, slow):
    name = 'memserver_connections_ended_total{reason="stalled"}'
    wait_until(lambda: memserver.metrics()[name] == 1, timeout=60)
    assert "did not read its replies" in memserver.wait_log(r"\(stalled\): .*")
