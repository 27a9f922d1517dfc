# SPDX-License-Identifier: Apache-2.0
"""What the fixtures of conftest.py are made of: processes, memservers, `coal run`, namespaces, what /proc says."""

import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("COAL_BUILD", "build")).resolve()
APPS = BUILD / "tests" / "apps"
PYTHON = "/usr/bin/python3"

# COAL_RUN="" in the environment runs every program plainly: then the tests prove that their own checks are right.
PLAIN = os.environ.get("COAL_RUN") == ""
SANITIZED = bool(os.environ.get("COAL_SANITIZED"))
HANG = 100  # seconds after which a program counts as hung

needs_coal = pytest.mark.skipif(PLAIN, reason='COAL_RUN="": nothing is remote in a plain run')
needs_preload = pytest.mark.skipif(SANITIZED, reason="a sanitizer's malloc and a preloaded malloc exclude each other")


def text(data):
    return (data or b"").decode(errors="replace")


def environment(**more):
    env = {k: v for k, v in os.environ.items() if not k.startswith("COAL_") and k != "LD_PRELOAD"}
    env["COAL_BUILD"] = str(BUILD)
    env.update(LC_ALL="C.UTF-8", **more)
    return env


def need_build(*names):
    for name in names:
        if not (BUILD / name).exists():
            pytest.fail(f"{BUILD / name} is not built: run `make`")


def wait_until(condition, seconds=30, what="condition"):
    """Poll until condition() is true and return its value; the bound is there for hangs only."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f"still not so after {seconds} s: {what}")
        time.sleep(0.01)


# Processes -----------------------------------------------------------------------------------------------------------------

class Reaper:
    def __init__(self):
        self.started = []

    def __enter__(self):
        return self

    def popen(self, argv, **options):
        process = subprocess.Popen([str(a) for a in argv], start_new_session=True, **options)
        self.started.append(process)
        return process

    def __exit__(self, *_):
        for process in reversed(self.started):
            try:
                os.killpg(process.pid, signal.SIGKILL)  # also the children that outlived it
            except ProcessLookupError:
                pass
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()


class Done:
    """An ended program: status as the shell would see it from Popen (negative: signal), output, statistics of the pager."""

    def __init__(self, status, out, err, stats):
        self.status, self.out, self.err, self.stats = status, out, err, stats

    def __repr__(self):
        return f"status {self.status}\n--- stdout\n{text(self.out)[-3000:]}\n--- stderr\n{text(self.err)[-3000:]}"

    def must_succeed(self):
        assert self.status == 0, repr(self)
        return self


def argv_under_coal(argv, local="8M", pool=None, min_size=None, mmap=None, key=None, stats=None, fail_after=None, plain=False):
    if PLAIN or plain:
        return [str(a) for a in argv]
    need_build("coal", "libcoal.so", "libcoal-malloc.so")
    out = [BUILD / "coal", "run", "--local", local]
    for option, value in (("--pool", pool), ("--min-size", min_size), ("--mmap", mmap), ("--key", key), ("--stats", stats),
                          ("--fail-after", fail_after)):
        if value is not None:
            out += [option, value]
    return [str(a) for a in out + ["--", *argv]]


def run(reaper, argv, stdin=None, env=None, cwd=None, timeout=HANG, remote=True, stats=None, prefix=(), **options):
    """Run argv under `coal run` to its end. remote: it must have had memory on a memserver and fetched some of it back."""
    own_stats = stats or f"/dev/shm/coal-test-stats.{os.getpid()}"
    command = argv_under_coal(argv, stats=own_stats, **options)
    process = reaper.popen([*prefix, *command], env=environment(**(env or {})), cwd=cwd,
                           stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"hung for {timeout} s: {argv}\n{text(late.stdout)[-2000:]}\n{text(late.stderr)[-2000:]}")
    numbers = None
    if os.path.exists(own_stats):
        numbers = json.loads(Path(own_stats).read_text() or "null")
        if not stats:
            os.unlink(own_stats)
    done = Done(process.returncode, out, err, numbers)
    if remote and not PLAIN and not options.get("plain") and done.status == 0:
        assert numbers, f"no statistics were written\n{done!r}"
        assert numbers["evicted"] > 0 and numbers["bytes_in"] > 0, f"nothing was remote: {numbers}\n{done!r}"
    return done


class Running:
    """A program under `coal run` that reads commands, one a line, and answers each with a line."""

    def __init__(self, process):
        self.process = process
        self.pending = b""

    def answer(self, seconds=HANG):
        """The next line of standard output; None at its end."""
        end = time.monotonic() + seconds
        while b"\n" not in self.pending:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            if not ready:
                pytest.fail(f"no answer within {seconds} s")
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                return None
            self.pending += data
        line, self.pending = self.pending.split(b"\n", 1)
        return text(line)

    def ready(self):
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def tell(self, command):
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, command, seconds=HANG):
        self.tell(command)
        return self.answer(seconds)

    def end(self, seconds=HANG):
        self.process.stdin.close()
        status = self.process.wait(timeout=seconds)
        return status

    @property
    def pid(self):
        """Of the program itself, which `coal run` may have made a child."""
        return int(self.ask("pid").split()[1])

    def stderr(self):
        return self.errors.read_text(errors="replace")


def start(reaper, argv, errors, env=None, prefix=(), **options):
    command = argv_under_coal(argv, **options)
    with open(errors, "wb") as log:
        process = reaper.popen([*prefix, *command], env=environment(**(env or {})), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=log, bufsize=0)
    running = Running(process)
    running.errors = Path(errors)
    return running


# memserver -----------------------------------------------------------------------------------------------------------------

class Memserver:
    def __init__(self, reaper, listen, capacity="1G", lease=None, key=None, prefix=(), **options):
        argv = [*prefix, BUILD / "memserver", "--listen", listen, "--capacity", capacity]
        for name, value in dict(options, lease=lease, key=key).items():
            if value is True:
                argv.append("--" + name.replace("_", "-"))
            elif value is not None:
                argv += ["--" + name.replace("_", "-"), value]
        self.key = key
        self.errors = tempfile.TemporaryFile()
        self.process = reaper.popen(argv, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors)
        line = self._line()
        found = re.fullmatch(r"memserver: listening on (\S+)\n", line)
        assert found, f"instead of the listening line: {line!r} {self.stderr()}"
        self.address = found.group(1)
        self.pid = self.process.pid

    def _line(self):
        ready, _, _ = select.select([self.process.stdout], [], [], 20)
        return text(self.process.stdout.readline()) if ready else "nothing in 20 s"

    def stderr(self):
        self.errors.seek(0)
        return text(self.errors.read())

    def kill(self):
        self.process.kill()
        self.process.wait()

    def signal(self, number):
        self.process.send_signal(number)

    def stat(self):
        return wire_stat(self.address)


OP_HELLO, OP_ATTACH, OP_STAT, OP_BYE = 1, 3, 10, 12
HEADER = struct.Struct("<IBBHIIQQ")
STAT_NAMES = ("capacity", "promised", "used", "clients", "region_promised", "region_pages")


def wire_stat(address):
    """What a memserver without a key says in STAT, in pages; the asking client itself is not counted."""
    if address.startswith("unix:"):
        link = socket.socket(socket.AF_UNIX)
        where = address[5:]
    else:
        link = socket.socket()
        host, port = address.rsplit(":", 1)
        where = (host, int(port))
    link.settimeout(20)
    with link:
        link.connect(where)
        stream = link.makefile("rb")

        def ask(op, payload=b"", region=0):
            link.sendall(HEADER.pack(0x4C414F43, op, 0, 0, len(payload), region, 0, 0) + payload)
            _, _, status, _, length, _, _, _ = HEADER.unpack(stream.read(HEADER.size))
            assert status == 0, f"op {op}: status {status}"
            return stream.read(length)

        ask(OP_HELLO, struct.pack("<HHI32s", 1, 1, 0, os.urandom(32)))
        attached = ask(OP_ATTACH, struct.pack("<16sII32s", bytes(16), 0, os.getpid(), b"tests"))
        region = struct.unpack_from("<16sI", attached)[1]
        numbers = dict(zip(STAT_NAMES, struct.unpack("<6Q", ask(OP_STAT, region=region))))
        ask(OP_BYE, region=region)
    numbers["clients"] -= 1
    return numbers


# Namespaces ----------------------------------------------------------------------------------------------------------------

class NetPair:
    """Namespaces `near` (10.77.0.1) and `far` (10.77.0.2); cut() takes the link away, mend() brings it back."""

    near_address, far_address = "10.77.0.1", "10.77.0.2"

    def __init__(self):
        self.near, self.far = f"coal-near-{os.getpid()}", f"coal-far-{os.getpid()}"
        self.made = []

    def __enter__(self):
        try:
            for name in (self.near, self.far):
                self._ip("netns", "add", name)
                self.made.append(name)
            self._ip("-n", self.near, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", self.far)
            for name, address in ((self.near, self.near_address), (self.far, self.far_address)):
                self._ip("-n", name, "addr", "add", address + "/24", "dev", "veth0")
                self._ip("-n", name, "link", "set", "lo", "up")
                self._ip("-n", name, "link", "set", "veth0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.made:
            subprocess.run(["ip", "netns", "del", name], check=False)

    @staticmethod
    def _ip(*argv):
        subprocess.run(["ip", *argv], check=True, capture_output=True)

    def inside(self, name):
        """What to put before a command so that it runs in that namespace."""
        return ["nsenter", f"--net=/run/netns/{name}"]

    def cut(self):
        self._ip("-n", self.far, "link", "set", "veth0", "down")

    def mend(self):
        self._ip("-n", self.far, "link", "set", "veth0", "up")


# What the kernel says ------------------------------------------------------------------------------------------------------

RANGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+\s*(.*)$")


def smaps(pid):
    """The ranges of a process: dicts with start, end, name, rss (bytes) and flags, read from the kernel."""
    ranges = []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = RANGE.match(line)
        if head:
            ranges.append({"start": int(head[1], 16), "end": int(head[2], 16), "perms": head[3], "name": head[4], "rss": 0,
                           "flags": []})
        elif line.startswith("Rss:"):
            ranges[-1]["rss"] = int(line.split()[1]) * 1024
        elif line.startswith("VmFlags:"):
            ranges[-1]["flags"] = line.split()[1:]
    return ranges


def is_managed(r):
    """Registered with userfaultfd for missing pages; the pager's frames are so for write protection only."""
    return "um" in r["flags"]
