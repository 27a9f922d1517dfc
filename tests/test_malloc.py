# SPDX-License-Identifier: Apache-2.0
"""libcoal-malloc.so under small programs (tests/malloc): malloc, C++ operators, mmap and its relatives, fork."""
import contextlib
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / os.environ.get("B", "build")
SOURCES = ROOT / "tests" / "malloc"
TIMEOUT = 120

HEAP = [
    "remote", "glibc_stays_local", "alignment", "usable_size", "bad_arguments", "realloc_growth", "calloc_is_zero",
    "errno_is_kept", "hammer", "madvise_on_malloc", "fork_with_threads", "thread_exit", "exit_handlers"]
HEAP_IN_A_TINY_BUDGET = [
    "alignment", "usable_size", "realloc_growth", "calloc_is_zero", "hammer", "fork_with_threads"]
CXX = [
    "operators", "throws_bad_alloc", "calls_new_handler", "nothrow_survives_handler", "exceptions_in_threads"]
MMAP = [
    "what_is_taken", "munmap_part", "munmap_mixed", "mremap_shrink", "mremap_grow_in_place", "mremap_blocked",
    "mremap_move", "mremap_moves_protection", "mremap_fixed", "mremap_plain_onto_taken", "mremap_dontunmap",
    "mremap_refuses", "madvise_drops", "madvise_others", "mprotect_works", "reserve_then_commit", "fixed_anonymous",
    "fixed_file", "fork_keeps_table"]


@contextlib.contextmanager
def memserver(capacity, directory):
    """A memserver on a UNIX socket; gives its pool spec once it is listening."""
    binary = BUILD / "memserver"
    if not binary.exists():
        pytest.skip(f"{binary} is not built")
    server = subprocess.Popen(
        [binary, "--listen", f"unix:{directory}/pool", "--capacity", capacity, "--lease", "2"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        assert "listening on " in line, line
        yield line.split("listening on ")[1].strip()
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The test programs, compiled."""
    out = tmp_path_factory.mktemp("programs")
    for name, compiler in (("heap_cases.c", ["gcc", "-std=gnu11"]), ("mmap_cases.c", ["gcc", "-std=gnu11"]),
                           ("cxx_cases.cpp", ["g++", "-std=c++17"])):
        target = out / name.split(".")[0]
        subprocess.run([*compiler, "-D_GNU_SOURCE", "-O1", "-g", "-fno-builtin", "-Wall", "-Wextra", "-pthread",
                        "-o", target, SOURCES / name, "-ldl"], check=True, timeout=TIMEOUT)
    return out


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with memserver("512M", tmp_path_factory.mktemp("pool")) as spec:
        yield spec


@pytest.fixture
def small_pool(tmp_path):
    with memserver("32M", tmp_path) as spec:
        yield spec


def preload(argv, **settings):
    """Run argv under the library with COAL_<SETTING> in its environment."""
    library = BUILD / "libcoal-malloc.so"
    if not library.exists():
        pytest.skip(f"{library} is not built")
    env = {name: value for name, value in os.environ.items() if not name.startswith("COAL_")}
    env.update({f"COAL_{name.upper()}": str(value) for name, value in settings.items()}, LD_PRELOAD=str(library))
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def run_case(program, case, **settings):
    done = preload([program, case], **settings)
    assert done.returncode == 0, f"{case}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.stderr == ""


@pytest.mark.parametrize("case", HEAP)
def test_heap(programs, pool, case):
    run_case(programs / "heap_cases", case, pool=pool, local="8M")


@pytest.mark.parametrize("case", HEAP_IN_A_TINY_BUDGET)
def test_heap_in_a_tiny_budget(programs, pool, case):
    run_case(programs / "heap_cases", case, pool=pool, local="512K")


@pytest.mark.parametrize("case", [
    "min_size", "families_stay_apart", "realloc_growth", "calloc_is_zero", "hammer", "thread_exit"])
def test_heap_with_min_size(programs, pool, case):
    run_case(programs / "heap_cases", case, pool=pool, local="8M", min_size=4096)


@pytest.mark.parametrize("case", ["local_without_pool", "alignment", "realloc_growth", "hammer", "fork_with_threads"])
def test_heap_without_pool(programs, case):
    run_case(programs / "heap_cases", case)


@pytest.mark.parametrize("case", ["capacity", "capacity_of_small_blocks"])
def test_heap_at_the_end_of_capacity(programs, small_pool, case):
    run_case(programs / "heap_cases", case, pool=small_pool, local="8M")


def test_freed_memory_is_dropped_and_never_written(programs, pool):
    run_case(programs / "heap_cases", "freed_is_not_written", pool=pool, local="4M")


@pytest.mark.parametrize("case", CXX)
def test_cxx(programs, pool, case):
    run_case(programs / "cxx_cases", case, pool=pool, local="4M")


@pytest.mark.parametrize("case", MMAP)
def test_mmap(programs, pool, case):
    run_case(programs / "mmap_cases", case, pool=pool, local="1M", mmap="64K")


def test_mmap_at_the_end_of_capacity(programs, small_pool):
    run_case(programs / "mmap_cases", "capacity", pool=small_pool, local="1M", mmap="64K")


def test_unreachable_pool_is_one_clear_line(tmp_path):
    done = preload(["/bin/true"], pool=f"unix:{tmp_path}/nobody")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("coal: can't open the pool") and "remedy" in last


def test_bad_size_in_the_environment_is_one_clear_line(tmp_path):
    done = preload(["/bin/true"], pool=f"unix:{tmp_path}/nobody", local="much")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "coal: COAL_LOCAL=much is no size (give a number of bytes, or one with K, M, G or T)"]


def test_nothing_but_the_interposed_names_is_exported():
    library = BUILD / "libcoal-malloc.so"
    if not library.exists():
        pytest.skip(f"{library} is not built")
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in symbols.splitlines()}
    operators = {name for name in names if name.startswith(("_Zn", "_Zd"))}
    assert len(operators) == 20
    assert names - operators == {
        "malloc", "free", "calloc", "realloc", "reallocarray", "memalign", "aligned_alloc", "posix_memalign", "valloc",
        "pvalloc", "malloc_usable_size", "cfree", "mmap", "mmap64", "munmap", "mremap", "madvise", "mprotect",
        "posix_madvise", "fork"}
