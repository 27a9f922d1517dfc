# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the integration tests, and the collector that makes every cmocka test a pytest item. See tests/README.md."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import harness  # noqa: E402

CMOCKA_TEST = re.compile(r"cmocka_unit_test(?:_setup|_teardown|_setup_teardown|_prestate\w*)?\s*\(\s*(\w+)")
TAP_LINE = re.compile(r"^(ok|not ok) \d+ (- |# SKIP )(\w+)", re.M)
CMOCKA_SECONDS = 110


def pytest_configure(config):
    # Who ends the tests with SIGTERM (timeout, a gate) must find nothing left of them: let fixtures finish, as for Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


# One item per cmocka test -------------------------------------------------------------------------------------------

def pytest_collect_file(parent, file_path):
    if file_path.suffix == ".c" and file_path.parent.name in ("unit", "api"):
        return CmockaFile.from_parent(parent, path=file_path)
    return None


class CmockaFile(pytest.File):
    """A C file of cmocka tests: its executable runs once, when the first of its items does."""

    def collect(self):
        self.executable = harness.BUILD / "tests" / self.path.parent.name / self.path.stem
        self.results = None
        names = list(dict.fromkeys(CMOCKA_TEST.findall(self.path.read_text())))
        self.names = names or [self.path.stem]
        for name in self.names:
            yield CmockaItem.from_parent(self, name=name)

    def run(self):
        if self.results is not None:
            return
        self.results, self.complaint = {}, None
        if not self.executable.exists():
            self.complaint = f"{self.executable} is not built: run `make tests`"
            return
        env = dict(harness.environment(), CMOCKA_MESSAGE_OUTPUT="TAP")
        try:
            done = subprocess.run([self.executable], env=env, capture_output=True, timeout=CMOCKA_SECONDS,
                                  stdin=subprocess.DEVNULL, start_new_session=True)
        except subprocess.TimeoutExpired as late:
            self.output = harness.text(late.stdout) + harness.text(late.stderr)
            self.complaint = f"{self.executable} did not end within {CMOCKA_SECONDS} s\n{self.output}"
        else:
            self.output = harness.text(done.stdout) + harness.text(done.stderr)
            if done.returncode:
                self.complaint = f"{self.executable} ended with status {done.returncode}\n{self.output}"
        for verdict, mark, name in TAP_LINE.findall(self.output):
            self.results[name] = "skip" if "SKIP" in mark else verdict
        unknown = set(self.results) - set(self.names)
        if unknown and not self.complaint:
            self.complaint = f"tests that the collector did not find in the source: {sorted(unknown)}"


class CmockaItem(pytest.Item):
    def runtest(self):
        group = self.parent
        group.run()
        verdict = group.results.get(self.name)
        if verdict == "skip":
            pytest.skip("; ".join(line for line in group.output.splitlines() if line.startswith("skip:")) or "the test gives no reason")
        whole = self.name == group.path.stem or self.name == group.names[-1]
        failed_alone = any(v == "not ok" for v in group.results.values())
        if verdict is None and not (whole and group.results):
            raise CmockaFailure(group.complaint or f"{self.name} did not run\n{group.output}")
        if verdict == "not ok":
            raise CmockaFailure(group.output)
        if whole and group.complaint and not failed_alone:
            raise CmockaFailure(group.complaint)

    def repr_failure(self, excinfo):
        if isinstance(excinfo.value, CmockaFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, 0, f"{self.path.stem}: {self.name}"


class CmockaFailure(Exception):
    pass


# The closing line ----------------------------------------------------------------------------------------------------

def pytest_unconfigure(config):
    """`N passed, N failed, N skipped`, after everything that pytest itself prints. Errors count as failed."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.option.collectonly:
        return
    number = {kind: len(reporter.stats.get(kind, [])) for kind in ("passed", "failed", "error", "skipped", "xfailed", "xpassed")}
    failed = number["failed"] + number["error"] + number["xpassed"]
    print(f"{number['passed']} passed, {failed} failed, {number['skipped'] + number['xfailed']} skipped", flush=True)


# Fixtures --------------------------------------------------------------------------------------------------------------

@pytest.fixture
def reaper():
    """Processes started through it are killed, with their process group, and reaped when the test ends, however it ends."""
    with harness.Reaper() as started:
        yield started


@pytest.fixture
def memserver(reaper):
    """memserver(listen=…, capacity=…, …) starts a memserver and returns it once it listens; see harness.Memserver."""
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(prefix="coal-") as short:  # pytest's own folders are too long for names of sockets

        def start(listen=None, **options):
            harness.need_build("memserver")
            return harness.Memserver(reaper, listen or f"unix:{short}/{next(numbers)}", **options)
        yield start


@pytest.fixture
def coal(reaper):
    """coal(argv, local=…, …) runs a program to its end under `coal run` (or plainly: COAL_RUN=""); see harness.run."""
    def run(argv, **options):
        return harness.run(reaper, argv, **options)
    return run


@pytest.fixture
def coal_start(reaper):
    """As coal, but returns the running process with pipes on its three streams."""
    def start(argv, **options):
        return harness.start(reaper, argv, **options)
    return start


@pytest.fixture
def netpair():
    """Two network namespaces joined by a veth pair; see harness.NetPair."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    with harness.NetPair() as pair:
        yield pair


@pytest.fixture(autouse=True)
def _ipc_is_left_clean():
    """No test may leave statistics pages of ended processes behind."""
    yield
    for page in Path("/dev/shm").glob("coal.*"):
        pid = page.name.split(".")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            page.unlink(missing_ok=True)
