# SPDX-License-Identifier: Apache-2.0
"""Peers made of the kernel and Debian's packages, for bench/run: what they need is set up here and always taken down again.

A peer is a context manager that gives a Ready: options for pflat, and a function that puts the process that calls it under
the memory limit. It raises Skip with the reason where it can't be had.

Everything of one run is named after the process: /run/coal-bench-PID, a control group coal-bench-PID, and what is made
elsewhere is noted in that folder. So one function, remove(), takes down what a finished, an interrupted and a killed run have
left; sweep() calls it for runs whose process is gone. Swap space, loops and zram devices that were there before are never
touched: our own are new ones. One peer at a time.
"""
import contextlib
import dataclasses
import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

NAME = "coal-bench-"
RUN = "/run"
START_LIMIT_S = 10
ZRAM_CONTROL = "/sys/class/zram-control"
PAGE_CLUSTER = "/proc/sys/vm/page-cluster"
# What pflat itself needs beside the memory under test is charged to the same control group.
PROCESS_BYTES = 1 << 20
HIGHEST_PRIORITY = "32767"


class Skip(Exception):
    """Why a peer can't be measured here."""


@dataclasses.dataclass
class Ready:
    """A peer that is set up."""
    options: list  # for pflat
    enter: object  # to be called in the child before it becomes pflat


def read(path):
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read().strip()


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(str(text))


def run(*command):
    """A command that says nothing unless it fails."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            timeout=60, check=False)
    if result.returncode:
        raise OSError(f"{' '.join(command)}: {' '.join(result.stdout.split())}")
    return result.stdout.strip()


def wait_until(condition, what):
    end = time.monotonic() + START_LIMIT_S
    while not condition():
        if time.monotonic() > end:
            raise OSError(f"still not so after {START_LIMIT_S} s: {what}")
        time.sleep(0.01)


def need(*programs):
    packages = {"nbdkit": "nbdkit", "nbdfuse": "libnbd-bin", "fusermount3": "fuse3", "losetup": "mount",
                "mkswap": "util-linux", "swapon": "mount"}
    if os.geteuid() != 0:
        raise Skip("only root may set up a memory limit, swap and mounts")
    for program in programs:
        if not shutil.which(program):
            raise Skip(f"no {program}: apt-get install {packages[program]}")


def start_time(pid):
    """Tells a process from a later one with its number; empty if there is none."""
    try:
        return read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[19]
    except OSError:
        return ""


def swapoff(device):
    if any(line.split()[0] == device for line in read("/proc/swaps").splitlines()[1:]):
        run("swapoff", device)


def memory_hierarchy():
    """(folder of the root memory control group, is it version 2)"""
    v2 = None
    for line in read("/proc/mounts").splitlines():
        _, folder, kind, options = line.split()[:4]
        if kind == "cgroup" and "memory" in options.split(","):
            return folder, False
        if kind == "cgroup2":
            v2 = folder
    if v2 and "memory" in read(f"{v2}/cgroup.subtree_control").split():
        return v2, True
    raise Skip("no memory control group: mount one (version 1), or echo +memory > cgroup.subtree_control (version 2)")


def remove_group(name):
    try:
        group = os.path.join(memory_hierarchy()[0], name)
    except Skip:
        return
    if not os.path.isdir(group):
        return
    for pid in read(f"{group}/cgroup.procs").split():
        os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: not read(f"{group}/cgroup.procs"), f"{group} is empty")
    os.rmdir(group)


def remove_zram(folder):
    for note in glob.glob(f"{folder}/zram[0-9]*"):
        device = os.path.basename(note)
        if os.path.exists(f"/sys/block/{device}"):
            swapoff(f"/dev/{device}")
            write(f"/sys/block/{device}/reset", 1)
            write(f"{ZRAM_CONTROL}/hot_remove", device[4:])
        os.unlink(note)


def remove_loops(folder):
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        if read(path).startswith(f"{folder}/"):
            device = "/dev/" + path.split("/")[3]
            swapoff(device)
            run("losetup", "--detach", device)


def remove_mount(folder):
    if any(line.split()[4] == f"{folder}/nbd" for line in read("/proc/self/mountinfo").splitlines()):
        run("fusermount3", "-u", f"{folder}/nbd")


def remove_processes(folder):
    """Those whose command line names their note in our folder: the number alone might be another process's by now."""
    for note in glob.glob(f"{folder}/*.pid"):
        pid = read(note)
        with contextlib.suppress(OSError, ValueError):
            if note in read(f"/proc/{pid}/cmdline").split("\0"):
                os.kill(int(pid), signal.SIGTERM)
                wait_until(lambda p=pid, n=note: not alive(p, n), f"{note} has ended")
        os.unlink(note)


def alive(pid, note):
    """A child of ours that has ended stays a process without a command line until it is reaped."""
    with contextlib.suppress(OSError):
        return note in read(f"/proc/{pid}/cmdline").split("\0")
    return False


def restore_page_cluster(folder):
    note = f"{folder}/page-cluster"
    if os.path.exists(note):
        write(PAGE_CLUSTER, read(note))
        os.unlink(note)


def remove(folder):
    """Take down all that a run has left; what can't be is said, and tried again by the next run."""
    failed = []
    for step in (lambda f: remove_group(os.path.basename(f)), remove_zram, remove_loops, remove_mount, remove_processes,
                 restore_page_cluster):
        try:
            step(folder)
        except (OSError, subprocess.SubprocessError) as error:
            failed.append(str(error))
    if failed:
        print(f"bench: not all of {folder} could be removed: {'; '.join(failed)}", file=sys.stderr)
    else:
        shutil.rmtree(folder)


def sweep():
    """Remove what runs have left whose process is gone."""
    if os.geteuid() != 0:
        return
    for folder in glob.glob(f"{RUN}/{NAME}[0-9]*"):
        pid = folder.rsplit("-", 1)[1]
        note = f"{folder}/start"
        if not start_time(pid) or not os.path.exists(note) or read(note) != start_time(pid):
            print(f"bench: removing what process {pid} has left", file=sys.stderr)
            remove(folder)


@contextlib.contextmanager
def workspace():
    """The folder of this run; everything noted there is removed at the end, which no signal interrupts."""
    folder = f"{RUN}/{NAME}{os.getpid()}"
    os.mkdir(folder, 0o700)
    try:
        write(f"{folder}/start", start_time(os.getpid()))
        yield folder
    finally:
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        remove(folder)
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)


def limit_memory(folder, budget):
    """Make the control group; returns what a child calls to enter it."""
    root, v2 = memory_hierarchy()
    group = os.path.join(root, os.path.basename(folder))
    os.mkdir(group)
    write(f"{group}/{'memory.max' if v2 else 'memory.limit_in_bytes'}", budget + PROCESS_BYTES)
    return lambda: write(f"{group}/cgroup.procs", 0)


def no_swap_readahead(folder):
    """Random pages: one at a time. With more, each fault would read neighbours that nobody asked for."""
    write(f"{folder}/page-cluster", read(PAGE_CLUSTER))
    write(PAGE_CLUSTER, 0)


def make_swap(device):
    run("mkswap", device)
    run("swapon", "--priority", HIGHEST_PRIORITY, device)


def start_nbdkit(folder, size, *options):
    """A memory export over TCP, on a port that the kernel has picked; returns its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    note = f"{folder}/nbdkit.pid"
    script = 'fd=$1; shift; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@" 3<&$fd'
    command = ["nbdkit", "--foreground", "--pidfile", note, *options, "memory", str(size)]
    with open(f"{folder}/nbdkit.log", "wb") as log, listener:
        subprocess.Popen(["bash", "-c", script, "bash", str(listener.fileno()), *command], pass_fds=[listener.fileno()],
                         stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        wait_until(lambda: os.path.exists(note) and read(note), f"nbdkit runs ({folder}/nbdkit.log)")
        return f"nbd://127.0.0.1:{listener.getsockname()[1]}"


def start_nbdfuse(folder, uri):
    """The export as a file; returns its path."""
    note = f"{folder}/nbdfuse.pid"
    os.mkdir(f"{folder}/nbd")
    with open(f"{folder}/nbdfuse.log", "wb") as log:
        subprocess.Popen(["nbdfuse", "-P", note, f"{folder}/nbd/nbd", uri], stdin=subprocess.DEVNULL, stdout=log,
                         stderr=log, start_new_session=True)
    wait_until(lambda: os.path.exists(note) and read(note), f"nbdfuse has mounted ({folder}/nbdfuse.log)")
    return f"{folder}/nbd/nbd"


@contextlib.contextmanager
def fuse(size, budget):
    """A file of nbdfuse, mapped; nbdkit's memory behind it over TCP."""
    need("nbdkit", "nbdfuse", "fusermount3")
    memory_hierarchy()
    if not os.path.exists("/dev/fuse"):
        raise Skip("no /dev/fuse: the kernel has no FUSE")
    with workspace() as folder:
        # One thread: for one fault at a time faster than nbdkit's sixteen, which wake one another.
        path = start_nbdfuse(folder, start_nbdkit(folder, size, "--threads=1"))
        yield Ready(["--peer", f"file:{path}"], limit_memory(folder, budget))


@contextlib.contextmanager
def zram(size, budget):
    """Swap to compressed memory of this machine: no network at all."""
    need("mkswap", "swapon")
    memory_hierarchy()
    if not os.path.exists(f"{ZRAM_CONTROL}/hot_add"):
        raise Skip("the kernel has no zram")
    with workspace() as folder:
        device = f"zram{read(f'{ZRAM_CONTROL}/hot_add')}"
        write(f"{folder}/{device}", "")
        write(f"/sys/block/{device}/disksize", 2 * size)
        no_swap_readahead(folder)
        make_swap(f"/dev/{device}")
        yield Ready(["--peer", "swap"], limit_memory(folder, budget))


@contextlib.contextmanager
def nbdswap(size, budget):
    """Swap to a loop device on nbdfuse's file; nbdkit's memory behind it over TCP."""
    need("nbdkit", "nbdfuse", "fusermount3", "losetup", "mkswap", "swapon")
    memory_hierarchy()
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(device):
            raise Skip(f"no {device}: the kernel can't do that")
    with workspace() as folder:
        path = start_nbdfuse(folder, start_nbdkit(folder, 2 * size, "--swap"))
        loop = run("losetup", "--find", "--show", "--direct-io=on", path)
        no_swap_readahead(folder)
        make_swap(loop)
        yield Ready(["--peer", "swap"], limit_memory(folder, budget))


PEERS = {"fuse": fuse, "zram": zram, "nbdswap": nbdswap}
TITLES = {"fuse": "FUSE mmap (nbdfuse, TCP)", "zram": "swap to zram, no network", "nbdswap": "swap over nbdfuse, TCP"}
