#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A virtual machine for tests: another kernel under this machine's userland. See README.md."""

import contextlib
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import image  # noqa: E402
from image import Unavailable  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("COAL_BUILD", "build")).resolve()
FOLDER = BUILD / "vm"
KERNEL = "linux-image-amd64"  # of Debian 12: Linux 6.1
SHARED = "/run/job"  # in the guest, as init mounts it
BOOT_SECONDS, MAIN_SECONDS = 120, 600
SHARE = "local,security_model=none,multidevs=remap"


class Failed(Exception):
    """The guest did not boot, died or hung; holds the end of its console."""


class Job:
    """A shell script in a guest: its exit status (124: it took too long) and its output, both streams."""

    def __init__(self, guest, number, deadline):
        self.guest, self.number, self.deadline = guest, number, deadline
        self.status = None

    def wait(self):
        while self.status is None:
            self.guest.hear(self.deadline)
        return self

    @property
    def output(self):
        out = self.guest.shared / f"{self.number}.out"
        return out.read_bytes() if out.exists() else b""


class Guest:
    """with Guest() as guest: it has booted, and is switched off at the end. It runs its jobs one after the other.

    shared is a folder here, SHARED the same folder in the guest."""

    def __init__(self, name="guest", kernel=KERNEL, memory="2G", cpus=1):
        self.name, self.kernel, self.memory, self.cpus = name, kernel, memory, cpus
        self.console = FOLDER / f"{name}.log"
        self.jobs = []
        self.pending = b""

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            if not shutil.which("qemu-system-x86_64"):
                raise Unavailable("qemu-system-x86_64 is not installed (Debian's package qemu-system-x86)")
            self.image = image.get(self.kernel, FOLDER)
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{self.name}-", dir=FOLDER)))
            self.shared = self.folder / "shared"
            self.shared.mkdir()
            self.image.write_initramfs(self.folder / "initramfs")
            self._make_disk(self.folder / "disk")
            self._start(stack)
            self.deadline = time.monotonic() + BOOT_SECONDS
            self._line(self.deadline)
            self.resources = stack.pop_all()
        return self

    def __exit__(self, *_):
        self.resources.close()

    @staticmethod
    def _make_disk(path):
        with open(path, "wb") as disk:
            disk.truncate(4 << 30)
        subprocess.run(["/sbin/mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", path], check=True)

    def _start(self, stack):
        self.link, far = (stack.enter_context(end) for end in socket.socketpair())
        kernel_arguments = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=nowatchdog random.trust_cpu=on"
        argv = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=256", "-M", "q35", "-cpu", "max",
                "-smp", self.cpus, "-m", self.memory, "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{self.console}",
                "-kernel", self.image.vmlinux, "-initrd", self.folder / "initramfs", "-append", kernel_arguments,
                "-virtfs", f"{SHARE},path=/,mount_tag=host,readonly=on",
                "-virtfs", f"{SHARE},path={self.image.root},mount_tag=packages,readonly=on",
                "-virtfs", f"{SHARE},path={self.shared},mount_tag=job",
                "-drive", f"file={self.folder / 'disk'},if=virtio,format=raw,cache=unsafe",
                "-chardev", f"socket,id=agent,fd={far.fileno()}", "-device", "virtio-serial", "-device", "virtserialport,chardev=agent"]
        self.errors = stack.enter_context(tempfile.TemporaryFile())
        self.process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=self.errors, stderr=self.errors,
                                        pass_fds=[far.fileno()], start_new_session=True)
        stack.callback(self._end)
        far.close()

    def _end(self):
        self.process.kill()
        self.process.wait()

    def hear(self, deadline):
        """Learn which job has ended."""
        number, status = self._line(deadline).split()
        self.jobs[int(number)].status = int(status)

    def _line(self, deadline):
        while b"\n" not in self.pending:
            if not select.select([self.link], [], [], max(0, deadline - time.monotonic()))[0]:
                self.process.kill()  # so that those who wait for the jobs after this one need not
                raise self._failure("did not answer in time")
            data = self.link.recv(4096)
            if not data:
                raise self._failure("has gone")
            self.pending += data
        line, self.pending = self.pending.split(b"\n", 1)
        return line.decode()

    def _failure(self, what):
        self.errors.seek(0)
        console = self.console.read_text(errors="replace") if self.console.exists() else ""
        return Failed(f"the guest {what}\n{self.errors.read().decode(errors='replace')}--- end of {self.console}\n{console[-4000:]}")

    def start(self, command, seconds, env=None):
        """Queue a shell script that runs in the root of the repository, for at most so many seconds; returns its Job."""
        exports = "".join(f"export {name}={shlex.quote(str(value))}\n" for name, value in (env or {}).items())
        now = time.monotonic()
        self.deadline = max(self.deadline, now) + seconds + 10
        job = Job(self, len(self.jobs), self.deadline)
        script = f"cd {shlex.quote(str(ROOT))} || exit 125\n{exports}exec timeout -k 5 {seconds} sh -c {shlex.quote(command)}\n"
        (self.shared / str(job.number)).write_text(script)
        self.jobs.append(job)
        self.link.sendall(f"{job.number}\n".encode())
        return job


def main():
    """guest.py COMMAND...: run a command in a guest; its output and its exit status are ours."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(f"usage: {sys.argv[0]} COMMAND [ARGUMENT...]")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as for Ctrl-C
    command = sys.argv[1] if len(sys.argv) == 2 else shlex.join(sys.argv[1:])
    try:
        with Guest() as guest:
            job = guest.start(command, MAIN_SECONDS).wait()
            sys.stdout.buffer.write(job.output)
    except (Failed, Unavailable) as failure:
        sys.exit(f"guest.py: {failure}")
    sys.exit(job.status)


if __name__ == "__main__":
    main()
