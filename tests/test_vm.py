# SPDX-License-Identifier: Apache-2.0
"""libcoal on the oldest kernel that it supports, Debian 12's Linux 6.1 in a virtual machine: without UFFDIO_MOVE pages leave by
copy, without UFFDIO_POISON lost ones are marked by a mapping. What runs there runs on this machine's kernel in other tests."""

import hashlib
import json
import shlex
import sys
from contextlib import ExitStack

import pytest

from conftest import CMOCKA_TEST, TAP_LINE
from harness import APPS, BUILD, PLAIN, ROOT, SANITIZED, argv_under_coal, text
from test_fork import SCENES as FORK_SCENES
from test_malloc import CXX, MMAP, programs  # noqa: F401
from test_syscalls import SCENES as SYSIO_SCENES

sys.path.insert(0, str(ROOT / "tests" / "vm"))

import guest  # noqa: E402

pytestmark = [
    pytest.mark.skipif(SANITIZED or PLAIN, reason="an emulated processor is slow enough for `make check` alone"),
    pytest.mark.timeout(900)]

SLOW = 8  # scenes are that much smaller in a guest, hanging takes that much longer
ENV = {"COAL_BUILD": BUILD, "COAL_TEST_SLOW": SLOW, "CMOCKA_MESSAGE_OUTPUT": "TAP", "LC_ALL": "C.UTF-8"}
C_TESTS = {f"{source.parent.name}/{source.stem}": list(dict.fromkeys(CMOCKA_TEST.findall(source.read_text())))
           for room in ("unit", "api") for source in sorted((ROOT / "tests" / room).glob("*.c"))}


# What runs there: the name of a job, its guest, its shell script ---------------------------------------------------------------

PLAN = {}


def plan(name, where, script):
    assert name not in PLAN
    PLAN[name] = (where, script)
    return name


def statistics(name):
    return name.replace("/", "-") + ".json"


def under_coal(name, *argv, local="512K", **options):
    """The words after `--` may have variables in them."""
    head = argv_under_coal([], local=local, stats=f"{guest.SHARED}/{statistics(name)}", **options)
    return f"{shlex.join(head)} {' '.join(map(str, argv))}"


def plan_scene(program, scene, *argv, before=""):
    name = f"{program}/{scene}"
    return plan(name, "two", before + under_coal(name, APPS / program, scene, *argv))


def plan_cases(program, cases, **options):
    return [plan(f"{program}/{case}", "one", under_coal(f"{program}/{case}", f"$PROGRAMS/{program}", case, **options))
            for case in cases]


for program in C_TESTS:
    plan(program, "one", f"{BUILD}/tests/{program}")
FORKS = [plan_scene("forks", scene) for scene in FORK_SCENES]
SYSIO = [plan_scene("sysio", scene, "/tmp") for scene in SYSIO_SCENES]
DIRECT_IO = "sysio/direct-io"
SYSIO.remove(DIRECT_IO)
WORDS = {plan_scene("forks", "while-evicting"): b"", plan_scene("forks", "hundred", before="echo | "): b"filled\nforked\n",
         plan_scene("forks", "no-room"): b"forked\n", plan_scene("forks", "raw-clone"): b"SEGV\n"}
CASES = [*plan_cases("heap_cases", ["alignment", "usable_size", "realloc_growth"]), *plan_cases("cxx_cases", CXX),
         *plan_cases("mmap_cases", MMAP, local="1M", mmap="64K")]
DOCTOR = plan("doctor", "two", f"{BUILD}/coal doctor --json")
REDIS = plan("redis", "two", f"""
redis="redis-cli -s /tmp/redis.sock"
{under_coal("redis", "redis-server --port 0 --unixsocket /tmp/redis.sock --dir /tmp --save '' --appendonly no", local="2M")} >/tmp/log &
until $redis ping; do sleep 0.1; done >/tmp/ping 2>&1
$redis --pipe <{guest.SHARED}/sets && $redis <{guest.SHARED}/gets >{guest.SHARED}/got && $redis save && $redis shutdown nosave
wait $!""")

LOST = plan("lost", "two", f"""
echo 1000 >/proc/sys/vm/max_map_count
{BUILD}/memserver --listen unix:/tmp/lost --capacity 64M >/tmp/listening &
until grep -q listening /tmp/listening; do sleep 0.1; done
{{
	echo fill 16
	until grep -q filled {guest.SHARED}/answers; do sleep 0.1; done
	kill -9 $!
	echo probe 5000
}} | {under_coal("lost", APPS / "store", pool="unix:/tmp/lost", fail_after="1")} >{guest.SHARED}/answers
status=$?
echo 65530 >/proc/sys/vm/max_map_count
exit $status""")


def value(key):
    return hashlib.sha256(b"%d" % key).hexdigest() * (20 + key % 50)


KEYS = 1000


@pytest.fixture(scope="module")
def jobs(request, programs):  # noqa: F811
    """What the chosen tests need runs in two guests side by side; jobs[name] is queued, running or has ended."""
    wanted = dict.fromkeys(item.callspec.params["job"] for item in request.session.items
                           if getattr(item, "module", None) is request.module)
    with ExitStack() as stack:
        guests, started = {}, {}
        for name in wanted:
            where, script = PLAN[name]
            try:
                if where not in guests:
                    guests[where] = stack.enter_context(guest.Guest(where))
                    prepare(guests[where].shared)
            except guest.Unavailable as reason:
                pytest.skip(str(reason))
            started[name] = guests[where].start(script, 240, env={**ENV, "PROGRAMS": programs})
        yield started


def prepare(shared):
    (shared / "sets").write_text("".join(f"SET {key} {value(key)}\n" for key in range(KEYS)))
    (shared / "gets").write_text("".join(f"GET {key}\n" for key in range(KEYS)))


def ended_well(job):
    job.wait()
    assert job.status == 0, f"status {job.status}\n{text(job.output)[-4000:]}"
    return job


def was_remote(job, name):
    numbers = json.loads((job.guest.shared / statistics(name)).read_text())
    assert numbers["evicted"] > 0 and numbers["bytes_in"] > 0, f"nothing was remote: {numbers}"


# The tests ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("job, test", [(program, test) for program, tests in C_TESTS.items() for test in tests])
def test_of_libcoal(jobs, job, test):
    job = jobs[job].wait()
    output = text(job.output)
    verdicts = {name: verdict for verdict, mark, name in TAP_LINE.findall(output) if "SKIP" not in mark}
    assert verdicts.get(test) == "ok", f"status {job.status}\n{output}"


@pytest.mark.parametrize("job", C_TESTS)
def test_program_of_libcoal_ends_well(jobs, job):
    ended_well(jobs[job])


@pytest.mark.parametrize("job", FORKS + SYSIO)
def test_scene(jobs, job):
    was_remote(ended_well(jobs[job]), job)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="without UFFDIO_MOVE what a device writes into a leaving page is lost")
@pytest.mark.parametrize("job", [DIRECT_IO])
def test_device_writes_into_leaving_pages(jobs, job):
    ended_well(jobs[job])


@pytest.mark.parametrize("job", WORDS)
def test_scene_says(jobs, job):
    assert ended_well(jobs[job]).output == WORDS[job]
    was_remote(jobs[job], job)


@pytest.mark.parametrize("job", CASES)
def test_case_of_malloc(jobs, job):
    assert ended_well(jobs[job]).output == b""


@pytest.mark.parametrize("job", [REDIS])
def test_redis_keeps_every_value(jobs, job):
    shared = ended_well(jobs[job]).guest.shared
    was_remote(jobs[job], job)
    got = (shared / "got").read_text().split("\n")
    assert [key for key in range(KEYS) if got[key] != value(key)] == [] and len(got) == KEYS + 1


@pytest.mark.parametrize("job", [LOST])
def test_lost_pages_take_fewer_mappings_than_there_may_be(jobs, job):
    """Four thousand pages without UFFDIO_POISON, where a process may have a thousand mappings."""
    shared = ended_well(jobs[job]).guest.shared
    words = (shared / "answers").read_text().splitlines()[-1].split()
    found = dict(zip(words[::2], map(int, words[1::2])))
    assert found["sigbus"] > 3000 and found["wrong"] == 0 and found["zero"] == 0, found


@pytest.mark.parametrize("job", [DOCTOR])
def test_doctor_says_what_is_missing_and_what_that_costs(jobs, job):
    checks = {check["name"]: check for check in json.loads(ended_well(jobs[job]).output)["checks"]}
    features = checks["features"]
    assert checks["kernel"]["text"].startswith("6.1.") and features["level"] == "warn", checks
    assert {"MOVE", "POISON"} <= set(features["text"].partition("missing:")[2].split()), features
    assert "copied" in features["cost"] and "O_DIRECT" in features["cost"] and "mappings" in features["cost"], features
    assert "6.6" in features["remedy"] and "6.8" in features["remedy"], features
