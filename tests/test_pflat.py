# SPDX-License-Identifier: Apache-2.0
"""pflat measures what it says, says all of it, and refuses what makes no sense. Nothing here asserts a time."""
import glob
import json
import os
import re
import subprocess

import pytest

REPOSITORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
BUILD = os.path.join(REPOSITORY, os.environ.get("COAL_BUILD", "build"))
PFLAT = os.path.join(BUILD, "pflat")
SMALL = ["--pages", "1024", "--faults", "3000"]
FLOORS = ["floor.anon", "floor.uffd.same_core", "floor.uffd.other_core", "floor.rtt.same_core", "floor.rtt.block",
          "floor.rtt.spin", "floor.rtt.spin_both"]
FIGURES = ["min_us", "p50_us", "p90_us", "p99_us", "p99_9_us", "max_us"]

pytestmark = pytest.mark.skipif(bool(os.environ.get("COAL_SANITIZED")), reason="pflat measures; it has no sanitized build")


def pflat(*arguments):
    return subprocess.run([PFLAT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120,
                          check=False)


def measured(*arguments):
    result = pflat("--json", *SMALL, *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module", name="document")
def fixture_document():
    return measured()


def test_json_has_the_faults_with_all_figures(document):
    fault = document["latency"]["fault"]
    assert fault["count"] == 3000
    figures = [fault[key] for key in FIGURES]
    assert figures == sorted(figures) and figures[0] > 0


@pytest.mark.parametrize("name", FLOORS)
def test_json_has_every_floor(document, name):
    floor = document["latency"][name]
    if floor is None and os.cpu_count() == 1:
        pytest.skip("this floor needs a second core")
    figures = [floor[key] for key in FIGURES]
    assert figures == sorted(figures) and figures[0] > 0


def test_json_has_throughput_and_ratio(document):
    assert document["faults_per_second"] > 0
    assert document["ratio"] == pytest.approx(document["latency"]["fault"]["p50_us"] / document["floor_us"], rel=1e-3)


@pytest.mark.skipif(os.cpu_count() == 1, reason="on one core both sides of the round trip sleep")
@pytest.mark.parametrize("quantile, floor, ratio", [("p50_us", "floor_us", "ratio"), ("p99_us", "floor_p99_us", "ratio_p99")])
def test_floor_is_a_local_userfault_and_a_spinning_round_trip(document, quantile, floor, ratio):
    latency = document["latency"]
    both = latency["floor.uffd.same_core"][quantile] + latency["floor.rtt.spin_both"][quantile]
    assert document[floor] == pytest.approx(both, rel=1e-3)
    assert document[ratio] == pytest.approx(latency["fault"][quantile] / both, rel=1e-3)


def test_stream_is_measured_where_the_kernel_moves_pages(document):
    if document["stream_bytes_per_second"] is None:
        pytest.skip("no UFFDIO_MOVE (Linux 6.8), or one core")
    assert document["stream_bytes_per_second"] > 1e6


def test_no_floors_leaves_out_those_of_the_wire():
    document = measured("--no-floors")
    assert document["latency"]["floor.anon"] and document["latency"]["floor.uffd.same_core"]
    assert document["latency"]["floor.rtt.spin_both"] is None
    assert document["ratio"] is None and document["stream_bytes_per_second"] is None


def test_every_timed_access_is_a_fault_of_the_pager(document):
    pager = document["pager"]
    counted = pager["faults_read"] + pager["faults_zero"] + pager["faults_soft"]
    assert document["faults"] == pytest.approx(counted, rel=0.02)


def test_every_fault_evicts_once_the_budget_is_full(document):
    assert document["pager"]["evicted"] == pytest.approx(document["faults"], rel=0.1)
    assert document["pager"]["resident_bytes_at_start"] > document["options"]["local_bytes"] / 2


def test_loads_write_nothing_back(document):
    # But a page that the filling modified may have its turn to leave only now.
    assert document["pager"]["written"] <= document["faults"] / 100


def test_stores_are_written_back():
    assert measured("--write", "100")["pager"]["written"] > 1000


@pytest.mark.parametrize("pattern", ["seq", "random", "stride:7"])
def test_every_pattern_with_threads_and_stores_finds_right_pages(pattern):
    document = measured("--pattern", pattern, "--threads", "3", "--write", "30")
    # Where pages are read ahead, a walk in order finds most of them resident.
    assert document["faults"] + document["resident_accesses"] >= 3000
    assert document["options"]["pattern"] == pattern


def test_scan_of_loads_goes_over_so_many_pages():
    document = measured("--no-floors", "--scan", "--pattern", "seq")
    assert document["scanned_pages"] == 3000
    assert document["bytes_per_second"] == pytest.approx(3000 * 4096 / document["seconds"], rel=1e-3)


def test_scan_of_stores_writes_all_but_a_budget_of_fresh_pages_in_the_timed_part():
    document = measured("--no-floors", "--scan", "--pattern", "seq", "--write", "100", "--local", "1M")
    assert document["scanned_pages"] == 1024 - 256
    assert document["pager"]["faults_zero"] == 1024 - 256
    assert document["pager"]["written"] > 256


def test_soft_catches_pages_while_they_leave():
    document = measured("--no-floors", "--soft", "--local", "1M")
    assert document["kinds"]["soft"]["count"] == document["pager"]["faults_soft"] > 0


def test_on_cue_begins_at_the_next_line_of_input():
    with subprocess.Popen([PFLAT, "--json", "--no-floors", "--on-cue", *SMALL], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            assert process.poll() is None
            document = json.loads(process.communicate("\n", timeout=60)[0])
        finally:
            process.kill()
    assert document["faults"] == 3000


def test_seconds_end_the_run():
    result = pflat("--json", "--pages", "1024", "--seconds", "0.05")
    assert result.returncode == 0, result.stderr
    assert 0.05 <= json.loads(result.stdout)["seconds"] < 60


def test_table_names_faults_floors_and_ratio():
    result = pflat(*SMALL)
    assert result.returncode == 0, result.stderr
    for words in ("page fault", "anonymous fault", "userfault", "round trip", "faults/s", "ratio", "p99.9"):
        assert words in result.stdout


def test_table_fits_120_columns():
    assert max(map(len, pflat(*SMALL).stdout.splitlines())) <= 120


def test_cdf_file_rises_to_one_in_every_data_set(tmp_path):
    path = tmp_path / "cdf"
    result = pflat(*SMALL, "--cdf", str(path))
    assert result.returncode == 0, result.stderr
    sets = [chunk.strip().splitlines() for chunk in path.read_text().split("\n\n\n") if chunk.strip()]
    names = [lines[0][2:] for lines in sets]
    assert names[0] == "fault" and "floor.anon" in names
    for lines in sets:
        points = [tuple(map(float, line.split())) for line in lines[1:]]
        assert points == sorted(points)
        assert points[-1][1] == 1


def test_private_memserver_is_gone_afterwards():
    before = set(glob.glob("/tmp/pflat.*"))
    assert pflat(*SMALL).returncode == 0
    assert set(glob.glob("/tmp/pflat.*")) <= before


@pytest.fixture(name="tcp_memserver")
def fixture_tcp_memserver():
    with subprocess.Popen([os.path.join(BUILD, "memserver"), "--listen", "127.0.0.1:0", "--capacity", "64M", "--once"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            yield re.search(r"listening on (\S+)", line).group(1)
        finally:
            process.kill()


def test_named_pool_over_tcp_is_measured_against_tcp(tcp_memserver):
    document = measured("--pool", tcp_memserver)
    assert document["options"]["fabric"] == "tcp"
    assert document["options"]["pool"] == tcp_memserver


@pytest.mark.parametrize("arguments, words", [
    (["--nonsense"], "unrecognized option"),
    (["more"], "more"),
    (["--pages", "ten"], "ten"),
    (["--pages", "5"], "256"),
    (["--local", "lots"], "lots"),
    (["--local", "4K"], "40K"),
    (["--pages", "1024", "--local", "4M"], "half"),
    (["--pattern", "zigzag"], "zigzag"),
    (["--pattern", "stride:0"], "stride"),
    (["--pages", "1024", "--pattern", "stride:1024"], "stride"),
    (["--threads", "0"], "threads"),
    (["--write", "101"], "101"),
    (["--faults", "0"], "faults"),
    (["--seconds", "-1"], "seconds"),
    (["--peer", "umap"], "coal, swap, file"),
    (["--peer", "file"], "path"),
    (["--peer", "swap:/dev/null"], "colon"),
    (["--scan", "--write", "30"], "0 or 100"),
    (["--scan", "--soft"], "--soft"),
    (["--soft", "--threads", "2"], "one thread"),
])
def test_bad_options_are_refused_with_status_2(arguments, words):
    result = pflat(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_unreachable_pool_is_said_in_one_line_with_status_1():
    result = pflat(*SMALL, "--pool", "unix:/nonexistent/memserver")
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


@pytest.fixture(name="local_file")
def fixture_local_file(tmp_path):
    path = tmp_path / "pages"
    with open(path, "wb") as file:
        file.truncate(1024 * 4096)
    return path


@pytest.mark.parametrize("peer", ["file", "swap"])
def test_peer_whose_budget_nobody_keeps_is_no_measurement(peer, local_file):
    result = pflat(*SMALL, "--peer", f"file:{local_file}" if peer == "file" else peer)
    assert result.returncode == 1
    assert "no access faulted" in result.stderr and "memory control group" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("path, words", [("/nonexistent/pages", "No such file"), ("/dev/null", "smaller")])
def test_peer_file_that_will_not_do_is_said_in_one_line_with_status_1(path, words):
    result = pflat(*SMALL, "--peer", f"file:{path}")
    assert result.returncode == 1
    assert words in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_peer_coal_is_ours():
    document = measured("--peer", "coal", "--no-floors")
    assert document["options"]["fabric"] == "unix" and document["pager"]["evicted"] > 0


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version(option):
    result = pflat(option)
    assert result.returncode == 0
    assert "pflat" in result.stdout
