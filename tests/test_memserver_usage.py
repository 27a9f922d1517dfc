# SPDX-License-Identifier: Apache-2.0
"""The memserver's command line: what is refused says so in one sentence with its remedy, and starts nothing."""
import os
import socket

import pytest

import memclient
from memclient import Memserver, run_memserver

LOCAL = ("--listen", "127.0.0.1:0")
BAD = {
    "nothing": ([], "--listen HOST:PORT"),
    "no capacity": ([*LOCAL], "--capacity 4G"),
    "unknown option": ([*LOCAL, "--capacity", "1M", "--colour"], "unrecognized option"),
    "stray argument": ([*LOCAL, "--capacity", "1M", "127.0.0.1:1"], "unexpected argument"),
    "bad size": ([*LOCAL, "--capacity", "lots"], "write a size such as"),
    "hexadecimal size": ([*LOCAL, "--capacity", "0x1000"], "write a size such as"),
    "size below a page": ([*LOCAL, "--capacity", "100"], "less than a page"),
    "size beyond all": ([*LOCAL, "--capacity", "64T"], "start several"),
    "bad limit": ([*LOCAL, "--capacity", "1M", "--max-client", "-1"], "write a size such as"),
    "bad store": ([*LOCAL, "--capacity", "1M", "--store", "tape"], "--store ram or --store file:PATH"),
    "bad lease": ([*LOCAL, "--capacity", "1M", "--lease", "soon"], "a number from 0 to 86400"),
    "bad threads": ([*LOCAL, "--capacity", "1M", "--threads", "0"], "a number from 1 to 64"),
    "no port": (["--listen", "127.0.0.1", "--capacity", "1M"], "write HOST:PORT"),
    "bad port": (["--listen", "127.0.0.1:70000", "--capacity", "1M"], "write HOST:PORT"),
    "bare IPv6": (["--listen", "::1:80", "--capacity", "1M"], "[IPV6]:PORT"),
    "unknown host": (["--listen", "no-such-host.invalid:1", "--capacity", "1M"], "check the name"),
    "long path": (["--listen", "unix:/" + "x" * 120, "--capacity", "1M"], "choose a shorter one"),
    "all addresses without a key": (["--listen", "0.0.0.0:0", "--capacity", "1M"], "--insecure"),
    "all IPv6 addresses without a key": (["--listen", "[::]:0", "--capacity", "1M"], "--insecure"),
    "missing key": ([*LOCAL, "--capacity", "1M", "--key", "/nonexistent"], "check --key"),
    "bad metrics": ([*LOCAL, "--capacity", "1M", "--metrics", "here"], "write HOST:PORT"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_command_line(name):
    options, remedy = BAD[name]
    done = run_memserver(*options)
    assert remedy in done.stderr
    assert (done.returncode, done.stdout) == (2, "")


def test_key_that_others_may_read(tmp_path):
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o644)
    done = run_memserver(*LOCAL, "--capacity", "1M", "--key", key)
    assert f"chmod 600 {key}" in done.stderr
    assert done.returncode == 2


def test_key_that_is_too_short(tmp_path):
    key = tmp_path / "key"
    key.write_bytes(b"short")
    key.chmod(0o600)
    done = run_memserver(*LOCAL, "--capacity", "1M", "--key", key)
    assert "head -c 32 /dev/urandom" in done.stderr
    assert done.returncode == 2


def test_insecure_allows_all_addresses(tmp_path):
    with Memserver(tmp_path, "--insecure", listen=("0.0.0.0:0",)) as memserver:
        port = memserver.address.rsplit(":", 1)[1]
        with memclient.Client(f"127.0.0.1:{port}") as c:
            assert c.region


def test_key_allows_all_addresses(tmp_path):
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    key.chmod(0o600)
    with Memserver(tmp_path, "--key", key, listen=("0.0.0.0:0",)) as memserver:
        port = memserver.address.rsplit(":", 1)[1]
        with memclient.Client(f"127.0.0.1:{port}", key=b"k" * 32) as c:
            assert c.region


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_second_instance_is_told(tmp_path, kind):
    with Memserver(tmp_path, listen=("127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s",)) as memserver:
        done = run_memserver("--listen", memserver.address, "--capacity", "1M")
        assert "another program listens there" in done.stderr
        assert done.returncode == 1
        with memclient.Client(memserver.address) as c:
            assert c.region


def test_file_in_the_way_of_a_socket_is_kept(tmp_path):
    (tmp_path / "s").write_text("precious")
    assert run_memserver("--listen", f"unix:{tmp_path}/s", "--capacity", "1M").returncode == 1
    assert (tmp_path / "s").read_text() == "precious"


def test_metrics_address_in_use_ends_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_memserver("--listen", f"unix:{tmp_path}/s", "--capacity", "1M", "--metrics", address)
    assert "another program listens there" in done.stderr
    assert done.returncode == 1
    assert not (tmp_path / "s").exists()


def test_help_and_version():
    assert "--capacity" in run_memserver("--help").stdout
    assert run_memserver("--version").stdout.startswith("memserver (Coalesce) ")
