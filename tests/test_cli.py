# SPDX-License-Identifier: Apache-2.0
"""The coal command as a person or a script meets it: what it refuses, how it ends, what it leaves behind, what it shows."""

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from harness import BUILD, PYTHON, SANITIZED, wait_until

COAL = BUILD / "coal"
SHM = Path("/dev/shm")
BOUND = 6  # seconds after which something counts as hung

pytestmark = pytest.mark.skipif(SANITIZED, reason="coal run preloads a malloc; sanitizers have their own")


def environment(**more):
    env = {k: v for k, v in os.environ.items() if not k.startswith("COAL_") and k not in ("LD_PRELOAD", "NO_COLOR")}
    env.update(LC_ALL="C.UTF-8", **more)
    return env


def coal(*argv, env=None, prefix=(), **options):
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([*prefix, COAL, *map(str, argv)], capture_output=True, text=True, timeout=BOUND,
                          env=environment(**(env or {})), **options)


def state(pid):
    """The state letter of a process, or "" when it is gone; a zombie counts as gone."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if letter == "Z" else letter


@pytest.fixture
def started():
    """started(*argv) runs coal with pipes; whatever is left of it at the end is killed by process group."""
    processes = []

    def start(*argv, env=None):
        # A process group in our session: a session of its own would be an orphan, in which the kernel ignores SIGTSTP.
        process = subprocess.Popen([COAL, *map(str, argv)], env=environment(**(env or {})), process_group=0, bufsize=0,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        processes.append(process)
        return process

    yield start
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


@pytest.fixture
def runtime_dir():
    """An XDG_RUNTIME_DIR of our own, short enough for a socket; shows what private memservers leave behind."""
    with tempfile.TemporaryDirectory(prefix="ct-", dir="/tmp") as path:
        yield Path(path)


def line_of(process):
    ready, _, _ = select.select([process.stdout], [], [], BOUND)
    assert ready, f"no output within {BOUND} s"
    return process.stdout.readline().decode().rstrip("\n")


ECHO = """
import os, sys
print(os.getpid(), flush=True)
block = bytearray(os.urandom(1 << 20))
for line in sys.stdin:
    print(line.strip(), flush=True)
"""


def start_echo(started, *options, env=None):
    """A program under coal run that repeats its input; returns the process of coal run and the program's number."""
    process = started("run", *options, "--", PYTHON, "-c", ECHO, env=env)
    return process, int(line_of(process))


# Wrong command lines --------------------------------------------------------------------------------------------------

def closed_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def refused(done, status, *words):
    """One sentence that says what is wrong; a second line may name --help."""
    assert done.returncode == status, done
    assert done.stdout == "", done
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 2 and (len(lines) == 1 or lines[1].startswith("Try ")), done.stderr
    assert lines[0].startswith("coal"), done.stderr
    for word in words:
        assert word in lines[0], done.stderr


@pytest.mark.parametrize("argv, words", [
    ([], ["which command"]),
    (["frobnicate"], ["frobnicate", "coal --help"]),
    (["--frobnicate"], ["--frobnicate"]),
    (["run"], ["which program"]),
    (["run", "--frobnicate", "--", "true"], ["--frobnicate"]),
    (["run", "--local"], ["--local"]),
    (["run", "--local", "5X", "--", "true"], ["--local", "5X", "512M"]),
    (["run", "--local", "-1", "--", "true"], ["--local", "-1"]),
    (["run", "--local", "99999999999T", "--", "true"], ["--local", "too large"]),
    (["run", "--local", "4K", "--", "true"], ["--local", "40K"]),
    (["run", "--min-size", "many", "--", "true"], ["--min-size", "many"]),
    (["run", "--mmap", "0", "--", "true"], ["--mmap", "4.0K"]),
    (["run", "--fail-after", "soon", "--", "true"], ["--fail-after", "soon"]),
    (["run", "--key", "/nonexistent/key", "--", "true"], ["/nonexistent/key", "No such file"]),
    (["run", "--stats", "/nonexistent/stats", "--", "true"], ["/nonexistent/stats", "No such file"]),
    (["stat", "abc"], ["abc", "process number"]),
    (["stat", "1", "2"], ["one process"]),
    (["stat", "--frobnicate"], ["--frobnicate"]),
    (["top", "-n", "0"], ["--count"]),
    (["top", "--interval", "never"], ["--interval", "never"]),
    (["doctor", "now"], ["now"]),
], ids=lambda value: " ".join(value) or "nothing")
def test_wrong_command_line(argv, words):
    refused(coal(*argv), 2, *words)


@pytest.mark.parametrize("size, mode, words", [
    (8, 0o600, ["16", "4096"]), (5000, 0o600, ["16", "4096"]), (32, 0o644, ["chmod 600"])])
def test_unusable_key(tmp_path, size, mode, words):
    key = tmp_path / "key"
    key.write_bytes(os.urandom(size))
    key.chmod(mode)
    refused(coal("run", "--key", key, "--", "true"), 2, *words)


def test_pool_that_can_not_be_read(tmp_path):
    refused(coal("run", "--pool", "nonsense", "--", "touch", tmp_path / "started"), 2, "nonsense")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_unreachable_pool(tmp_path, where):
    spec = f"127.0.0.1:{closed_port()}" if where == "tcp" else f"unix:{tmp_path}/none"
    refused(coal("run", "--pool", spec, "--", "touch", tmp_path / "started"), 1, spec.removeprefix("unix:"))
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("client", ["another key", "no key"])
def test_wrong_key(tmp_path, memserver, client):
    for name in ("ours", "theirs"):
        (tmp_path / name).write_bytes(os.urandom(32))
        (tmp_path / name).chmod(0o600)
    pool = memserver(capacity="64M", key=tmp_path / "theirs").address
    key = ["--key", tmp_path / "ours"] if client == "another key" else []
    refused(coal("run", "--pool", pool, *key, "--", "touch", tmp_path / "started"), 1, "key")
    assert not (tmp_path / "started").exists()


@pytest.fixture
def as_nobody():
    """A function as coal(), but run by a user without rights, from a copy that this user may execute."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("becoming another user needs root and setpriv")
    with tempfile.TemporaryDirectory(prefix="ct-", dir="/tmp") as path:
        os.chmod(path, 0o755)
        for name in ("coal", "memserver", "libcoal.so", "libcoal-malloc.so"):
            shutil.copy(BUILD / name, path)
        shutil.copy(BUILD / "libcoal.so", Path(path) / "libcoal.so.0")

        def run(*argv):
            return subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all",
                                   "--inh-caps=-all", Path(path) / "coal", *map(str, argv)],
                                  capture_output=True, text=True, timeout=BOUND, env=environment(), cwd="/")
        run.path = path
        yield run


@pytest.fixture
def without_rights(as_nobody):
    allowed = Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "1"
    if allowed or os.stat("/dev/userfaultfd").st_mode & 0o006:
        pytest.skip("this machine gives userfaultfd to every user")
    return as_nobody


def test_no_right_to_userfaultfd(without_rights):
    marker = Path(without_rights.path) / "started"
    done = without_rights("run", "--", "touch", marker)
    refused(done, 1, "userfaultfd", "sysctl -w vm.unprivileged_userfaultfd=1", "coal doctor")
    assert not marker.exists()


# Programs that can't run ----------------------------------------------------------------------------------------------

def test_program_that_does_not_exist():
    refused(coal("run", "--", "no-such-program"), 127, "no-such-program", "PATH")


def test_program_in_a_folder_that_does_not_exist():
    refused(coal("run", "--", "/nonexistent/program"), 127, "/nonexistent/program")


def test_file_without_execute_permission(tmp_path):
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    refused(coal("run", "--", tmp_path / "plain"), 126, "plain", "chmod +x")


def test_folder_instead_of_a_program(tmp_path):
    refused(coal("run", "--", tmp_path), 126, str(tmp_path))


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_script_runs(tmp_path):
    done = coal("run", "--", script(tmp_path / "s", "#!/bin/sh\necho \"$1\"\nexit 5\n"), "hello")
    assert (done.returncode, done.stdout) == (5, "hello\n"), done


def test_script_without_interpreter(tmp_path):
    refused(coal("run", "--", script(tmp_path / "s", "echo hello\n")), 126, "#!/bin/sh")


def test_script_whose_interpreter_is_missing(tmp_path):
    refused(coal("run", "--", script(tmp_path / "s", "#!/nonexistent/sh\n")), 127, "/nonexistent/sh")


def compiled(path, *flags):
    subprocess.run(["gcc", "-x", "c", "-", "-o", path, *flags], input="int main(void) { return 0; }", text=True, check=True)
    return path


@pytest.mark.parametrize("flag", ["-static", "-static-pie"])
def test_static_program(tmp_path, flag):
    refused(coal("run", "--", compiled(tmp_path / "p", flag)), 126, "statically", "dynamically linked")


def test_program_for_another_machine(tmp_path):
    program = compiled(tmp_path / "p")
    with open(program, "r+b") as f:
        f.seek(18)  # e_machine
        f.write(b"\xf3\x00")
    refused(coal("run", "--", program), 126, "not a program for this machine")


def test_program_with_another_c_library(tmp_path):
    program = compiled(tmp_path / "p", "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1")
    refused(coal("run", "--", program), 126, "another C library")


def test_set_user_id_program(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("making another user's set-user-ID program needs root")
    program = compiled(tmp_path / "p")
    os.chown(program, 65534, 65534)
    program.chmod(0o4755)
    refused(coal("run", "--", program), 126, "privileged", "set-user-ID")


# How it ends ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("status", [0, 1, 2, 42, 126, 255])
def test_exit_status_is_the_programs(status):
    done = coal("run", "--", "sh", "-c", f"echo out; echo err >&2; exit {status}")
    assert (done.returncode, done.stdout, done.stderr) == (status, "out\n", "err\n"), done


@pytest.mark.parametrize("name", ["TERM", "KILL", "INT", "SEGV", "ABRT", "USR1"])
def test_death_by_signal_is_the_programs(name):
    done = coal("run", "--", "sh", "-c", f"kill -{name} $$")
    assert done.returncode == -getattr(signal, "SIG" + name), done


def test_the_program_does_not_see_a_parent_that_ignored_its_children():
    argv = [COAL, "run", "--", "sh", "-c", "exit 3"]
    done = subprocess.run(argv, env=environment(), timeout=BOUND,
                          preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert done.returncode == 3


PRINT_SIGNALS = """
import os, signal, sys
awaited = [getattr(signal, name) for name in sys.argv[1:]]
signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
print(os.getpid(), flush=True)
while True:
    print(signal.Signals(signal.sigwait(awaited)).name, flush=True)
"""


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGALRM", "SIGWINCH"])
def test_signals_are_passed_on_once(started, name):
    process = started("run", "--", PYTHON, "-c", PRINT_SIGNALS, name, "SIGUSR2")
    line_of(process)
    process.send_signal(getattr(signal, name))
    assert line_of(process) == name
    process.send_signal(signal.SIGUSR2)
    assert line_of(process) == "SIGUSR2"


def test_a_signal_that_kills_the_program_kills_coal_run(started):
    process, _ = start_echo(started)
    process.terminate()
    assert process.wait(timeout=BOUND) == -signal.SIGTERM


def test_stop_and_continue_are_passed_on(started):
    process, pid = start_echo(started)
    process.send_signal(signal.SIGTSTP)
    wait_until(lambda: state(pid) == "T", what="the program is stopped")
    process.send_signal(signal.SIGCONT)
    process.stdin.write(b"again\n")
    assert line_of(process) == "again"


class Terminal:
    """A shell with job control on a pseudo-terminal."""

    def __init__(self):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve("/bin/bash", ["bash", "--norc", "--noediting", "-i"], environment(PS1="ready> ", TERM="dumb"))
        self.seen = ""
        self.until("ready> ")

    def until(self, pattern):
        """Read until the pattern has come; returns the match and forgets what came before its end."""
        end = time.monotonic() + BOUND
        while not (found := re.search(pattern, self.seen)):
            left = end - time.monotonic()
            assert left > 0 and select.select([self.fd], [], [], left)[0], f"no {pattern!r} in {self.seen!r}"
            self.seen += os.read(self.fd, 4096).decode()
        self.seen = self.seen[found.end():]
        return found

    def type(self, text):
        os.write(self.fd, text.encode())

    def close(self):
        os.close(self.fd)  # a hangup: the shell ends its jobs and itself
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal():
    shell = Terminal()
    yield shell
    shell.close()


def test_ctrl_c_reaches_the_program_once(terminal):
    terminal.type(f"{COAL} run -- {PYTHON} -c '{PRINT_SIGNALS}' SIGINT SIGUSR2\n")
    pid = int(terminal.until(r"[\n ](\d+)\r").group(1))
    terminal.type("\x03")
    terminal.until("SIGINT\r\n")
    os.kill(pid, signal.SIGUSR2)
    assert "SIGINT" not in terminal.until("SIGUSR2\r\n").string
    os.kill(pid, signal.SIGKILL)
    terminal.until("ready> ")


def test_the_shell_sees_that_ctrl_c_killed_it(terminal):
    terminal.type(f"{COAL} run -- sh -c 'echo up; exec sleep 1000'\n")
    terminal.until("\nup\r")
    terminal.type("\x03")
    terminal.until("ready> ")
    terminal.type("echo status $?\n")
    terminal.until("\nstatus 130\r")


def test_ctrl_z_stops_the_job_and_fg_goes_on(terminal):
    terminal.type(f"{COAL} run -- {PYTHON} -c '{ECHO}'\n")
    terminal.until(r"[\n ]\d+\r")
    terminal.type("\x1a")
    terminal.until("Stopped")
    terminal.until("ready> ")
    terminal.type("fg\n")
    terminal.until("coal run")
    terminal.type("hello\n")
    terminal.until(r"(?s)hello\r\n.*hello\r\n")
    terminal.type("\x04")
    terminal.until("ready> ")


# What it sets up, what it leaves behind -------------------------------------------------------------------------------

def test_the_program_inherits_no_file():
    listing = "import os; print(sorted(os.listdir('/proc/self/fd')))"
    plain = subprocess.run([PYTHON, "-c", listing], capture_output=True, text=True, timeout=BOUND, stdin=subprocess.DEVNULL)
    assert coal("run", "--", PYTHON, "-c", listing).stdout == plain.stdout


def test_closed_standard_streams_stay_closed(tmp_path):
    """Nor does anything of ours take their numbers."""
    listing = "import os, sys; open(sys.argv[1], 'w').write(str(sorted(os.listdir('/proc/self/fd'))))"
    for name, command in (("plain", []), ("coal", [COAL, "run", "--"])):
        argv = [*command, PYTHON, "-c", listing, tmp_path / name]
        done = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *argv], env=environment(), timeout=BOUND)
        assert done.returncode == 0
    assert (tmp_path / "coal").read_text() == (tmp_path / "plain").read_text()


CHANGE_FOLDER = """
import os
block = bytearray(os.urandom(8 << 20))
total = sum(block)
os.chdir("/")
pid = os.fork()
if not pid:
    os._exit(0 if sum(block) == total else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sum(block) == total)
"""


def test_a_relative_socket_is_found_after_a_change_of_folder(tmp_path, memserver):
    memserver(f"unix:{tmp_path}/s", capacity="256M")
    done = coal("run", "--pool", "unix:s", "--local", "1M", "--", PYTHON, "-c", CHANGE_FOLDER, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "0 True\n"), done


def test_environment_of_the_program():
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    done = coal("run", "--local", "8M", "--min-size", "64K", "--mmap", "1M", "--fail-after", "1.5", "--",
                PYTHON, "-c", show)
    env = json.loads(done.stdout)
    assert {k: v for k, v in env.items() if k.startswith("COAL_") and k != "COAL_POOL"} == {
        "COAL_LOCAL": str(8 << 20), "COAL_MIN_SIZE": str(64 << 10), "COAL_MMAP": str(1 << 20), "COAL_FAIL_MS": "1500"}
    assert env["COAL_POOL"].startswith("unix:")
    assert env["LD_PRELOAD"] == str(BUILD / "libcoal-malloc.so")


def test_an_existing_preload_is_kept():
    done = coal("run", "--", "sh", "-c", "echo $LD_PRELOAD", env={"LD_PRELOAD": "libm.so.6"})
    assert done.stdout == f"{BUILD}/libcoal-malloc.so:libm.so.6\n", done


def test_settings_of_an_outer_run_do_not_leak_in():
    done = coal("run", "--", "sh", "-c", "echo ${COAL_MMAP-none} ${COAL_KEY-none}",
                env={"COAL_MMAP": "4096", "COAL_KEY": "/k"})
    assert done.stdout == "none none\n", done


def test_only_we_can_enter_the_folder_of_the_private_memserver(started, runtime_dir):
    start_echo(started, env={"XDG_RUNTIME_DIR": str(runtime_dir)})
    folders = list(runtime_dir.iterdir())
    assert len(folders) == 1 and folders[0].stat().st_mode & 0o777 == 0o700


def test_the_private_memserver_ends_with_the_program(runtime_dir):
    assert coal("run", "--", "true", env={"XDG_RUNTIME_DIR": str(runtime_dir)}).returncode == 0
    wait_until(lambda: not list(runtime_dir.iterdir()), what="the folder is gone")


def users_of(folder):
    """The processes whose command line names a folder."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in cmdline.read_bytes() and state(cmdline.parent.name):
                found.append(cmdline.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def test_a_private_memserver_that_ends_early_is_reported(started, runtime_dir):
    process = started("run", "--", "sh", "-c", "echo $$; read line", env={"XDG_RUNTIME_DIR": str(runtime_dir)})
    program = line_of(process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    keeper, = set(children) - {program}
    memserver, = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    os.kill(int(memserver), signal.SIGKILL)
    wait_until(lambda: not state(keeper), what="the keeper ended")
    process.stdin.close()
    process.wait(timeout=BOUND)
    assert b"private memserver ended before the program did" in process.stderr.read()


def test_coal_run_killed_leaves_nothing_behind(started, runtime_dir):
    process, pid = start_echo(started, env={"XDG_RUNTIME_DIR": str(runtime_dir)})
    assert users_of(runtime_dir), "no memserver"
    process.kill()
    wait_until(lambda: not state(pid), what="the program is gone")
    wait_until(lambda: not users_of(runtime_dir), what="the memserver is gone")
    wait_until(lambda: not list(runtime_dir.iterdir()), what="the folder is gone")


def test_ctrl_c_does_not_reach_the_memserver_before_the_program(started, runtime_dir):
    """A signal to the whole process group, as a terminal sends it: the program handles it and goes on using its memory."""
    handle = "import signal; signal.signal(signal.SIGINT, lambda *_: None)\n" + ECHO
    process = started("run", "--local", "1M", "--", PYTHON, "-c", handle, env={"XDG_RUNTIME_DIR": str(runtime_dir)})
    line_of(process)
    os.killpg(process.pid, signal.SIGINT)
    process.stdin.write(b"still here\n")
    assert line_of(process) == "still here"
    assert users_of(runtime_dir)


DAEMON = """
import os, sys, time
block = bytearray(os.urandom(4 << 20))
total = sum(block)
if os.fork():
    os._exit(0)
os.setsid()
for fd in (0, 1, 2):
    os.dup2(os.open("/dev/null", os.O_RDWR), fd)
with open(sys.argv[1] + ".new", "w") as f:
    f.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
with open(sys.argv[3], "w") as f:
    f.write("same" if sum(block) == total else "different")
"""


def test_a_program_that_daemonises_keeps_its_memory(tmp_path, runtime_dir):
    pid_file, go, verdict = (tmp_path / name for name in ("pid", "go", "verdict"))
    done = coal("run", "--local", "1M", "--", PYTHON, "-c", DAEMON, pid_file, go, verdict,
                env={"XDG_RUNTIME_DIR": str(runtime_dir)})
    assert done.returncode == 0, done
    pid = wait_until(lambda: pid_file.exists() and int(pid_file.read_text()), what="the daemon is up")
    try:
        assert users_of(runtime_dir), "the memserver must outlive coal run"
        go.touch()
        wait_until(lambda: not state(pid), what="the daemon ended")
    finally:
        if state(pid):
            os.kill(pid, signal.SIGKILL)
    assert verdict.read_text() == "same"
    wait_until(lambda: not list(runtime_dir.iterdir()), what="the folder is gone")


def test_a_pipe_behind_coal_run_ends_though_a_daemon_lives(tmp_path):
    pid_file = tmp_path / "pid"
    command = f"{COAL} run -- {PYTHON} -c '{DAEMON}' {pid_file} {tmp_path}/go {tmp_path}/verdict | cat"
    try:
        done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=BOUND, env=environment(),
                              stdin=subprocess.DEVNULL)
        assert done.returncode == 0
        pid = wait_until(lambda: pid_file.exists() and int(pid_file.read_text()), what="the daemon is up")
        assert state(pid)
    finally:
        (tmp_path / "go").touch()
    wait_until(lambda: not state(pid), what="the daemon ended")


# Statistics -----------------------------------------------------------------------------------------------------------

QUANTILES = {"count", "mean", "min", "p50", "p90", "p99", "p999", "max"}


def check_numbers(numbers):
    assert {"budget_bytes", "resident_bytes", "mapped_bytes", "promised_bytes", "remote_bytes", "prefetched", "evicted",
            "written", "discarded", "bytes_in", "bytes_out", "forks"} <= set(numbers)
    assert set(numbers["faults"]) == {"zero", "read", "write", "soft", "failed"}
    latency = numbers["latency_ns"]
    assert set(latency["kind"]) == {"zero", "read", "write", "soft"}
    assert set(latency["stage"]) == {"intake", "queue", "wire", "install"}
    for hist in [*latency["kind"].values(), *latency["stage"].values()]:
        assert set(hist) == QUANTILES
        assert hist["min"] <= hist["p50"] <= hist["p90"] <= hist["p99"] <= hist["p999"] <= hist["max"]
    assert [server["state"] for server in numbers["servers"]] == ["up"]


def test_stats_file(tmp_path):
    file = tmp_path / "stats.json"
    done = coal("run", "--local", "1M", "--stats", file, "--", PYTHON, "-c", ECHO, input="x\n", stdin=None)
    numbers = json.loads(file.read_text())
    check_numbers(numbers)
    assert numbers["pid"] == int(done.stdout.split()[0]) and numbers["budget_bytes"] == 1 << 20
    assert not (SHM / f"coal.{numbers['pid']}").exists()


def test_stats_on_standard_error():
    done = coal("run", "--stats", "-", "--", PYTHON, "-c", ECHO)
    assert done.stdout.strip().isdigit()
    for word in ("budget 256M", "faults:", "p99.9", "memserver unix:"):
        assert word in done.stderr


def test_stats_of_a_killed_program(tmp_path):
    file = tmp_path / "stats.json"
    assert coal("run", "--stats", file, "--", "sh", "-c", "kill -KILL $$").returncode == -signal.SIGKILL
    numbers = json.loads(file.read_text())
    check_numbers(numbers)
    assert not (SHM / f"coal.{numbers['pid']}").exists()


def test_stat_of_a_running_program(started):
    _, pid = start_echo(started)
    numbers = json.loads(coal("stat", pid, "--json").stdout)
    check_numbers(numbers)
    assert numbers["pid"] == pid and numbers["command"].startswith("python3")


def test_stat_table(started):
    _, pid = start_echo(started)
    done = coal("stat", pid)
    assert done.returncode == 0 and done.stdout.startswith(f"{pid} python3")
    for word in ("budget 256M", "zero", "p50", "p99.9", "memserver unix:", "up"):
        assert word in done.stdout


def test_stat_says_how_much_is_here_and_how_much_is_there(started):
    fill = "import os; block = bytearray(os.urandom(32 << 20))\n" + ECHO
    process = started("run", "--local", "4M", "--", PYTHON, "-c", fill)
    numbers = json.loads(coal("stat", line_of(process), "--json").stdout)
    assert 0 < numbers["resident_bytes"] <= 4 << 20
    assert 24 << 20 <= numbers["remote_bytes"] <= 96 << 20
    assert numbers["remote_bytes"] + numbers["resident_bytes"] >= 32 << 20


def test_stat_lists_all_programs(started):
    pids = {start_echo(started)[1] for _ in range(2)}
    lines = coal("stat").stdout.splitlines()
    assert lines[0].split()[:2] == ["PID", "COMMAND"] and pids <= {int(line.split()[0]) for line in lines[1:]}
    assert pids <= {numbers["pid"] for numbers in json.loads(coal("stat", "--json").stdout)}


def test_stat_of_no_process():
    with subprocess.Popen(["true"]) as gone:
        pass
    refused(coal("stat", gone.pid), 1, str(gone.pid), "no process")


def test_stat_of_a_process_without_coal():
    refused(coal("stat", os.getpid()), 1, str(os.getpid()), "does not use coal")


def test_stat_of_something_else_in_place_of_the_page():
    page = SHM / f"coal.{os.getpid()}"
    page.write_bytes(b"something else")
    try:
        refused(coal("stat", os.getpid()), 1, "not a statistics page")
        coal("stat")
        assert page.exists(), "a file that is no statistics page is not ours to remove"
    finally:
        page.unlink()


def test_the_page_of_an_older_process_with_the_same_number_is_not_believed(started):
    _, pid = start_echo(started)
    page = SHM / f"coal.{os.getpid()}"
    shutil.copy(SHM / f"coal.{pid}", page)
    try:
        refused(coal("stat", os.getpid()), 1, "not a statistics page")
    finally:
        page.unlink(missing_ok=True)


def test_pages_of_killed_processes_are_swept(started):
    _, pid = start_echo(started)
    with subprocess.Popen(["true"]) as gone:
        pass
    shutil.copy(SHM / f"coal.{pid}", SHM / f"coal.{gone.pid}")
    assert str(gone.pid) not in coal("stat").stdout.split()
    assert not (SHM / f"coal.{gone.pid}").exists() and (SHM / f"coal.{pid}").exists()


def test_the_page_is_gone_when_the_program_is():
    done = coal("run", "--", PYTHON, "-c", ECHO)
    assert not (SHM / f"coal.{done.stdout.strip()}").exists()


def test_stat_is_not_open_to_other_users(started, as_nobody):
    _, pid = start_echo(started)
    refused(as_nobody("stat", pid), 1, "another user's")


def test_top_in_a_pipe(started):
    _, pid = start_echo(started)
    done = coal("top", "-b", "-n", "1")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and all(len(line) <= 80 for line in lines), done.stdout
    assert "\033" not in done.stdout
    assert lines[1].split() == ["PID", "COMMAND", "RESIDENT", "REMOTE", "FAULTS/S", "P50", "us", "P99", "us",
                                "IN", "MB/S", "OUT"]
    at = next(i for i, line in enumerate(lines) if line.split()[:1] == [str(pid)])
    assert lines[at + 1].split()[0].startswith("unix:") and " up " in lines[at + 1]


def test_top_counts_pictures():
    done = coal("top", "-n", "3", "--interval", "0.1")
    assert done.stdout.count("coal top  ") == 3


def on_terminal(*argv, keys="", **env):
    """Run coal on a terminal of 80 columns; returns what it drew."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(COAL, [str(COAL), *argv], environment(TERM="xterm", **env))
    drawn = ""
    try:
        while select.select([fd], [], [], BOUND)[0]:
            try:
                data = os.read(fd, 4096).decode()
            except OSError:
                break
            drawn += data
            if keys and "PID" in drawn:
                os.write(fd, keys.encode())
                keys = ""
    finally:
        os.close(fd)
        status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0
    return drawn


def test_q_leaves_top_and_the_screen_is_restored():
    drawn = on_terminal("top", keys="q")
    assert drawn.startswith("\033[?1049h") and drawn.endswith("\033[?1049l")


def test_top_has_colours_on_a_terminal(started):
    start_echo(started)
    assert "\033[32m" in on_terminal("top", "-n", "1")


def test_top_honours_no_color(started):
    start_echo(started)
    assert not re.search("\033\\[[0-9]+m", on_terminal("top", "-n", "1", NO_COLOR="1"))


# doctor, help ---------------------------------------------------------------------------------------------------------

def test_doctor_finds_that_coal_can_run():
    if os.geteuid() != 0:
        pytest.skip("only root surely has the rights")
    done = coal("doctor")
    assert done.returncode == 0 and "coal can run here" in done.stdout, done
    assert not [line for line in done.stdout.splitlines() if line.startswith("fail")]


def test_doctor_tells_an_unprivileged_user_what_to_do(without_rights):
    done = without_rights("doctor")
    assert done.returncode == 1
    fail = next(i for i, line in enumerate(done.stdout.splitlines()) if line.startswith("fail") and "userfaultfd" in line)
    assert "cost:" in done.stdout.splitlines()[fail + 1] and "sysctl -w" in done.stdout.splitlines()[fail + 2]


def test_every_finding_of_doctor_has_a_cost_and_a_remedy(as_nobody):
    for done in (coal("doctor", "--json"), as_nobody("doctor", "--json")):
        report = json.loads(done.stdout)
        assert report["can_run"] == (done.returncode == 0)
        for check in report["checks"]:
            assert check["level"] in ("ok", "warn", "fail")
            assert check["level"] == "ok" or (check["cost"] and check["remedy"]), check


def test_doctor_sees_a_low_limit():
    done = coal("doctor", "--json", prefix=["prlimit", "--nofile=64"])
    assert [c["level"] for c in json.loads(done.stdout)["checks"] if c["name"] == "open files"] == ["warn"]


@pytest.mark.parametrize("argv", [["--help"], ["help"], ["run", "--help"], ["help", "run"], ["stat", "--help"],
                                  ["top", "--help"], ["doctor", "--help"]], ids=" ".join)
def test_help(argv):
    done = coal(*argv)
    assert done.returncode == 0 and done.stdout.startswith("Usage: coal") and done.stderr == ""


@pytest.mark.parametrize("argv", [["--version"], ["run", "--version"]], ids=" ".join)
def test_version(argv):
    done = coal(*argv)
    assert done.returncode == 0 and re.fullmatch(r"coal \d+\.\d+\.\d+\n", done.stdout)
