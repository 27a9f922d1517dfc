# SPDX-License-Identifier: Apache-2.0
"""A small client of the wire protocol (include/coal/wire.h), and a way to run a memserver, for tests."""
import hashlib
import hmac
import os
import pathlib
import re
import select
import signal
import socket
import struct
import subprocess
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("COAL_BUILD", ROOT / "build"))
if not BUILD.is_absolute():
    BUILD = ROOT / BUILD
MEMSERVER = BUILD / "memserver"

MAGIC = 0x4C414F43
PAGE = 4096
HELLO, AUTH, ATTACH, READ, WRITE, DISCARD, RESERVE, FORK, DROP, STAT, PING, BYE, LEASE = range(1, 14)
OK, EBADMSG, EVERSION, EAUTH, EREGION, ERANGE, NOSPACE, QUOTA, ABSENT, GONE, IO, BUSY = range(12)
HEADER = struct.Struct("<IBBHIIQQ")
NO_TOKEN = bytes(16)


class Refused(Exception):
    """The memserver answered with a status other than OK."""

    def __init__(self, status, arg=0):
        super().__init__(f"status {status}, arg {arg}")
        self.status, self.arg = status, arg


class Impostor(Exception):
    """The memserver does not hold our key."""


def page(text):
    """A page that starts with text and repeats it."""
    data = text.encode() if isinstance(text, str) else text
    return (data * (PAGE // len(data) + 1))[:PAGE]


def message(op, payload=b"", *, count=0, region=0, tag=0, arg=0, magic=MAGIC, status=0, length=None):
    length = len(payload) if length is None else length
    return HEADER.pack(magic, op, status, count, length, region, tag, arg & (1 << 64) - 1) + payload


def runs(*vector):
    return b"".join(struct.pack("<QII", first, n, 0) for first, n in vector)


def proof(key, label, client_nonce, server_nonce, instance):
    return hmac.new(key, label.ljust(16, b"\0") + client_nonce + server_nonce + instance, hashlib.sha256).digest()


def dial(address, timeout=20):
    """A socket connected to "HOST:PORT", "[V6]:PORT" or "unix:PATH"."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        sock.connect(address[5:])
    else:
        host, port = address.rsplit(":", 1)
        sock = socket.create_connection((host.strip("[]"), int(port)), timeout)
    return sock


class Client:
    """One connection. With attach=False it says hello (and proves its key) only; with hello=False it says nothing."""

    def __init__(self, address, *, token=NO_TOKEN, lane=0, key=None, hello=True, attach=True):
        self.sock = dial(address)
        self.key, self.region, self.tag, self.token = key, 0, 0, NO_TOKEN
        if hello:
            self.hello()
            if attach:
                self.attach(token, lane)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        self.sock.close()

    def send(self, op, payload=b"", **fields):
        self.tag += 1
        self.sock.sendall(message(op, payload, region=fields.pop("region", self.region), tag=self.tag, **fields))

    def recv_exactly(self, n):
        data = bytearray()
        while len(data) < n:
            more = self.sock.recv(n - len(data))
            if not more:
                raise EOFError(f"the memserver closed after {len(data)} of {n} bytes")
            data += more
        return bytes(data)

    def reply(self):
        """(op, status, tag, arg, payload)"""
        magic, op, status, count, length, _, tag, arg = HEADER.unpack(self.recv_exactly(HEADER.size))
        assert magic == MAGIC and count == 0
        return op, status, tag, arg, self.recv_exactly(length)

    def call(self, op, payload=b"", **fields):
        """Send a request; returns (arg, payload) of its reply, or raises Refused."""
        self.send(op, payload, **fields)
        got, status, tag, arg, data = self.reply()
        assert (got, tag) == (op, self.tag)
        if status:
            raise Refused(status, arg)
        return arg, data

    def hello(self):
        nonce = os.urandom(32)
        _, data = self.call(HELLO, struct.pack("<HHI", 1, 1, 0) + nonce)
        self.version, flags, self.lease_ms, self.instance, theirs, given = struct.unpack("<HHI16s32s32s", data)
        if self.key:
            expected = proof(self.key, b"coal1 memserver", nonce, theirs, self.instance)
            if not flags & 1 or not hmac.compare_digest(given, expected):
                raise Impostor()
        if flags & 1:
            self.call(AUTH, proof(self.key or b"none", b"coal1 client", nonce, theirs, self.instance))

    def attach(self, token=NO_TOKEN, lane=0):
        _, data = self.call(ATTACH, token + struct.pack("<II32s", lane, os.getpid(), b"memclient"))
        self.token, self.region, _, self.capacity, self.promised = struct.unpack("<16sIIQQ", data)

    def reserve(self, pages):
        return self.call(RESERVE, arg=pages)[0]

    def write(self, first, data):
        self.call(WRITE, runs((first, len(data) // PAGE)) + data, count=1)

    def read(self, first, n=1):
        return self.call(READ, runs((first, n)), count=1)[1]

    def discard(self, *vector):
        self.call(DISCARD, runs(*vector), count=len(vector))

    def fork(self):
        return self.call(FORK)[1]

    def stat(self):
        names = ("capacity", "promised", "used", "clients", "region_promised", "region_pages")
        return dict(zip(names, struct.unpack("<6Q", self.call(STAT)[1])))

    def bye(self):
        self.call(BYE)
        assert self.sock.recv(1) == b""
        self.close()

    def ended(self):
        """Wait until the memserver closes the connection."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionError:
            pass
        return True


class Memserver:
    """A running memserver; its addresses, its log, its end."""

    def __init__(self, tmp_path, *options, listen=("127.0.0.1:0",), capacity="64M", **popen):
        self.log_path = tmp_path / f"memserver-{time.monotonic_ns()}.log"
        command = [MEMSERVER, "--capacity", capacity, *options]
        for address in listen:
            command += ["--listen", address]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, bufsize=0, **popen)
        self.addresses, self.metrics_url = [], None
        try:
            wanted = len(listen) + ("--metrics" in options)
            while len(self.addresses) + bool(self.metrics_url) < wanted:
                self._read_line()
        except BaseException:
            self.close()
            raise
        self.address = self.addresses[0]

    def _read_line(self):
        if not select.select([self.process.stdout], [], [], 20)[0]:
            raise TimeoutError("the memserver does not say that it listens")
        line = self.process.stdout.readline().decode()
        if match := re.fullmatch(r"memserver: listening on (\S+)\n", line):
            self.addresses.append(match[1])
        elif match := re.fullmatch(r"memserver: metrics on (\S+)\n", line):
            self.metrics_url = match[1]
        else:
            raise RuntimeError(f"the memserver said {line!r}; its log: {self.log()}")

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc):
        try:
            if not kind:
                self.finish()
        finally:
            self.close()

    def finish(self):
        """End it if it still runs; it must end well, and no sanitizer may have complained."""
        if self.process.poll() is None:
            assert self.stop() == 0, self.log()
        assert not re.search(r"Sanitizer|runtime error", self.log()), self.log()

    def log(self):
        return self.log_path.read_text()

    def wait_log(self, pattern, timeout=20):
        """Wait for a line that matches; returns it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if match := re.search(pattern, self.log()):
                return match[0]
            time.sleep(0.02)
        raise TimeoutError(f"no {pattern!r} in the log: {self.log()}")

    def rss(self):
        """Resident bytes of the process."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def metrics(self):
        """{"name" or "name{label}": value}"""
        with urllib.request.urlopen(self.metrics_url, timeout=20) as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}

    def stop(self, sig=signal.SIGTERM):
        """End it by a signal; returns its exit status."""
        self.process.send_signal(sig)
        return self.process.wait(20)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stdin):
            if stream:
                stream.close()


def wait_until(condition, timeout=20):
    """Poll until condition() is true; returns its value."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError("the condition did not become true")
        time.sleep(0.01)
    return value


def run_memserver(*options, timeout=20):
    """Run a command line that is expected to end by itself; returns the CompletedProcess with text."""
    return subprocess.run([MEMSERVER, *options], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
