#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The demonstration: redis-server with three quarters of its data in a memserver, and every byte of it checked.

Fills redis with values that can be computed again from their keys, overwrites some, deletes some, has it write a snapshot
from a forked child (BGSAVE), reads every value back and compares. Ends with a table; the exit status is 1 if any value was
wrong. Resident bytes come from the kernel (/proc/PID/smaps), faults and latencies from `coal stat`.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import redis

BUILD = Path(os.environ.get("COAL_BUILD", "build")).resolve()
BATCH = 128
MIB = 1 << 20


class Failure(Exception):
    """Ends the demonstration with one sentence."""


# The data: 1 to 16 KiB a value, each a function of its key and of how often it was overwritten ----------------------------

def value(key, generation):
    seed = f"{key}/{generation}".encode()
    digest = hashlib.shake_128(seed)
    return digest.digest(1024 + int.from_bytes(hashlib.md5(seed).digest()[:2], "little") % (15 * 1024))


def overwritten(key):
    return key % 8 == 3


def deleted(key):
    return key % 16 == 5


def expected(key):
    return None if deleted(key) else value(key, 1 if overwritten(key) else 0)


# Progress -------------------------------------------------------------------------------------------------------------------

class Progress:
    """One line that is rewritten on a terminal; one line a step elsewhere."""

    def __init__(self):
        self.terminal = sys.stdout.isatty()

    def step(self, what, share):
        if self.terminal:
            bar = "#" * int(share * 30)
            print(f"\r  {what:<34} [{bar:<30}] {share:4.0%}", end="", flush=True)

    def done(self, what, seconds):
        line = f"  {what:<34} {seconds:5.1f} s"
        print("\r" + line + " " * 40 if self.terminal else line, flush=True)


def pipelined(client, keys, command, step):
    keys = list(keys)
    for first in range(0, len(keys), BATCH):
        part = keys[first:first + BATCH]
        with client.pipeline(transaction=False) as pipe:
            for key in part:
                command(pipe, key)
            yield from zip(part, pipe.execute())
        step((first + len(part)) / len(keys))


# What the kernel says ---------------------------------------------------------------------------------------------------------

def resident_bytes(pid):
    """(paged, all): resident bytes of what the pager answers for - ranges registered with userfaultfd, and its page buffers,
    which are anonymous and not passed to children - and of the whole process."""
    paged = everything = rss = 0
    anonymous = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-", line):
            anonymous = line.split()[4] == "0"
        elif line.startswith("Rss:"):
            rss = int(line.split()[1]) * 1024
            everything += rss
        elif line.startswith("VmFlags:") and anonymous and {"um", "uw", "dc"} & set(line.split()):
            paged += rss
    return paged, everything


class Watch(threading.Thread):
    """The highest resident sizes that it saw."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.highest, self.stop = pid, (0, 0), threading.Event()

    def run(self):
        while not self.stop.wait(0.1):
            try:
                self.highest = tuple(map(max, self.highest, resident_bytes(self.pid)))
            except OSError:
                return


# The run ------------------------------------------------------------------------------------------------------------------------

def start_redis(folder, budget):
    argv = [BUILD / "coal", "run", "--local", str(budget), "--", "redis-server", "--port", "0", "--unixsocket", f"{folder}/socket",
            "--dir", folder, "--save", "", "--appendonly", "no", "--logfile", f"{folder}/log"]
    process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, start_new_session=True)
    client = redis.Redis(unix_socket_path=f"{folder}/socket", socket_timeout=120)
    end = time.monotonic() + 30
    while True:
        try:
            client.ping()
            return process, client
        except redis.ConnectionError:
            if process.poll() is not None:
                log = Path(folder, "log")
                print(log.read_text() if log.exists() else "", file=sys.stderr, end="")
                raise Failure(f"redis-server did not start (status {process.returncode}): see above, or ask `coal doctor`") from None
            if time.monotonic() > end:
                raise Failure("redis-server does not answer after 30 s") from None
            time.sleep(0.05)


def save(client, step):
    client.bgsave()
    end = time.monotonic() + 120
    while (info := client.info("persistence"))["rdb_bgsave_in_progress"]:
        if time.monotonic() > end:
            raise Failure("BGSAVE did not end within 120 s")
        total = info.get("current_save_keys_total") or 1
        step(info.get("current_save_keys_processed", 0) / total)
        time.sleep(0.1)
    if info["rdb_last_bgsave_status"] != "ok":
        raise Failure("BGSAVE failed: its child could not read or write the data")


def exercise(client, keys, progress):
    """The whole life of the data; returns the number of values that were wrong."""
    wrong = 0

    def timed(what, work):
        begin = time.monotonic()
        result = work(lambda share: progress.step(what, share))
        progress.done(what, time.monotonic() - begin)
        return result

    def each(some, command):
        return lambda step: list(pipelined(client, some, command, step))

    def compare(step):
        return sum(got != expected(key) for key, got in pipelined(client, range(keys), lambda pipe, key: pipe.get(key), step))

    timed(f"fill with {keys} values", each(range(keys), lambda pipe, key: pipe.set(key, value(key, 0))))
    timed("overwrite an eighth", each(filter(overwritten, range(keys)), lambda pipe, key: pipe.set(key, value(key, 1))))
    timed("delete a sixteenth", each(filter(deleted, range(keys)), lambda pipe, key: pipe.delete(key)))
    timed("BGSAVE (fork)", lambda step: save(client, step))
    wrong += timed("read every value and compare", compare)
    if client.dbsize() != sum(not deleted(key) for key in range(keys)):
        wrong += 1
    return wrong


def coal_stat(pid):
    done = subprocess.run([BUILD / "coal", "stat", str(pid), "--json"], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise Failure(f"coal stat: {done.stderr.strip()}")
    return json.loads(done.stdout)


def size(n):
    return f"{n / MIB:.1f} MiB"


def table(rows):
    print()
    for name, text in rows:
        print(f"  {name:<40} {text:>28}")


def demonstrate(data_bytes, budget_share):
    keys = 0
    total = 0
    while total < data_bytes:
        total += len(value(keys, 0))
        keys += 1
    kept = sum(len(expected(key) or b"") for key in range(keys))
    budget = int(total * budget_share) // 4096 * 4096
    print(f"redis-server under coal run: {size(total)} of values, {size(budget)} of them may be resident")
    with tempfile.TemporaryDirectory(prefix="coal-demo.") as folder:
        process, client = start_redis(folder, budget)
        try:
            pid = client.info("server")["process_id"]
            watch = Watch(pid)
            watch.start()
            wrong = exercise(client, keys, Progress())
            watch.stop.set()
            watch.join()
            stat, (paged, everything) = coal_stat(pid), watch.highest
            client.shutdown(nosave=True)
            process.wait(30)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    report(stat, total, kept, budget, paged, everything, wrong)
    if not paged or not stat["bytes_in"]:
        raise Failure("nothing was paged: the demonstration shows nothing")
    return wrong


def report(stat, total, kept, budget, paged, everything, wrong):
    faults = stat["faults"]
    read = stat["latency_ns"]["kind"]["read"]
    table([
        ("data written / kept", f"{size(total)} / {size(kept)}"),
        ("budget", size(budget)),
        ("highest resident, data and page buffers", size(paged)),
        ("highest resident, whole process", size(everything)),
        ("faults, first touch", f"{faults['zero']}"),
        ("faults, read from the memserver", f"{faults['read']}"),
        ("fault latency p50 / p99", f"{read['p50'] / 1000:.1f} / {read['p99'] / 1000:.1f} us"),
        ("over the wire, in / out", f"{size(stat['bytes_in'])} / {size(stat['bytes_out'])}"),
        ("mismatches", f"{wrong}"),
    ])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=288, metavar="MIB", help="bytes of values, in MiB (default 288)")
    parser.add_argument("--share", type=float, default=0.25, help="share of them that may be resident (default 0.25)")
    options = parser.parse_args()
    try:
        return 1 if demonstrate(options.size * MIB, options.share) else 0
    except (Failure, redis.RedisError, subprocess.SubprocessError) as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
