# SPDX-License-Identifier: Apache-2.0
"""The kernels of the application benchmarks: right results, computed again here from their definition, wherever the memory lies."""
import bisect
import collections
import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from harness import BUILD, ROOT, needs_preload, wait_until

sys.path.insert(0, str(ROOT / "bench"))

import apps  # noqa: E402

KERNELS = BUILD / "bench" / "apps"
# Options that are small and still do not fit into the budget of 2 MiB.
SMALL = {
    "pagerank": ["--scale", "14", "--degree", "60", "--iterations", "3"],
    "bfs": ["--scale", "13", "--degree", "120", "--searches", "2"],
    "quicksort": ["--count", "700K"],
    "kmeans": ["--points", "80K", "--clusters", "5", "--iterations", "2"],
    "scan": ["--rows", "200K", "--rounds", "2"],
}
WORD = 2 ** 64 - 1
GOLDEN = 0x9e3779b97f4a7c15

pytestmark = pytest.mark.timeout(120)


def kernel(name, *options):
    done = subprocess.run([KERNELS / name, *options], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# The input, as kernel.h and graph.h define it ------------------------------------------------------------------------------

def mix(x):
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9 & WORD
    x = (x ^ x >> 27) * 0x94d049bb133111eb & WORD
    return x ^ x >> 31


def number(stream, index):
    return mix(mix(stream + 1) + index * GOLDEN & WORD)


def fold(checksum, values):
    for value in values:
        checksum = mix(checksum ^ value) + GOLDEN & WORD
    return checksum


def bits(value):
    return struct.unpack("<Q", struct.pack("<d", value))[0]


def graph(scale, mean):
    """For each vertex, the list of those that its edges lead to."""
    n, gather = 1 << scale, pow(GOLDEN, -1, 2 ** 64)
    edges, rows = 0, []
    for v in range(n):
        root = math.cbrt(n / ((v * gather & n - 1) + 1))
        degree = int(mean / 3 * root * root) + 1
        units = [(number(7, i) >> 11) * 2.0 ** -53 for i in range(edges, edges + degree)]
        rows.append([int(n * (u * u * u)) * GOLDEN & n - 1 for u in units])
        edges += degree
    return rows


# Results --------------------------------------------------------------------------------------------------------------------

def test_bfs_finds_the_levels_of_an_independent_search():
    rows, report = graph(9, 5), kernel("bfs", "--scale", "9", "--degree", "5", "--searches", "1")
    source = 511 * GOLDEN & 511
    level, now = {source: 0}, {source}
    while now:
        now = {w for v in now for w in rows[v]} - level.keys()
        level.update(dict.fromkeys(now, max(level.values()) + 1))
    counts = [0] * (1 + max(level.values()))
    for depth in level.values():
        counts[depth] += 1
    assert report["levels"] == counts and len(counts) > 3
    assert report["edges"] == sum(map(len, rows))
    folded = fold(0, [len(level), max(level.values()), *(level.get(v, 2 ** 32 - 1) for v in range(512))])
    assert report["checksum"] == f"{folded:016x}"


def test_pagerank_is_that_of_an_independent_computation():
    rows, report = graph(8, 6), kernel("pagerank", "--scale", "8", "--degree", "6", "--iterations", "4")
    out = [0] * 256
    for row in rows:
        for v in row:
            out[v] += 1
    rank = [1 / 256] * 256
    for _ in range(4):
        lost = sum(r for r, n in zip(rank, out) if not n)
        share = [r / n if n else 0 for r, n in zip(rank, out)]
        rank = [(0.15 + 0.85 * lost) / 256 + 0.85 * sum(share[u] for u in row) for row in rows]
    assert report["best_rank"] == pytest.approx(max(rank), rel=1e-9)
    assert report["best_vertex"] == rank.index(max(rank))


@pytest.mark.parametrize("count", [1, 2, 25, 3000])
def test_quicksort_sorts(count):
    numbers = sorted(number(11, i) for i in range(count))
    assert kernel("quicksort", "--count", str(count))["checksum"] == f"{fold(0, numbers):016x}"


def test_kmeans_finds_the_clusters_of_an_independent_computation():
    points, clusters = 500, 3
    report = kernel("kmeans", "--points", str(points), "--clusters", str(clusters), "--iterations", "3")
    point = [[(number(13, number(17, i) % clusters * 16 + d) % 65536 + number(18, i * 16 + d) % 32768) / 1024 for d in range(16)]
             for i in range(points)]
    centre = [point[points // clusters * c] for c in range(clusters)]
    for _ in range(3):
        nearest = [min((math.dist(p, c), k) for k, c in enumerate(centre))[1] for p in point]
        error = sum(math.dist(p, centre[k]) ** 2 for p, k in zip(point, nearest))
        members = [[p for p, k in zip(point, nearest) if k == c] for c in range(clusters)]
        centre = [[sum(axis) / len(m) for axis in zip(*m)] if m else c for m, c in zip(members, centre)]
    assert report["sizes"] == [len(m) for m in members]
    assert report["error"] == pytest.approx(error, rel=1e-9)


def trips(rows):
    year = 365 * 86400
    for i in range(rows):
        a, b, c = (number(19, 3 * i + k) for k in range(3))
        part = a % 1024
        miles, speed = part * part * 20 // 10486 + 20, 4 + (a >> 10) % 2 ** 32 % 28
        pickup = year * i // rows + (a >> 32) % (year // rows)
        card = (b >> 16) % 16 < 11
        fare = 250 + miles * 25 // 10 + (c >> 32) % 400
        tip = fare * ((c >> 48) % 30) // 100 if card else 0
        yield {"pickup": pickup, "dropoff": pickup + miles * 36 // speed, "distance": miles, "fare": fare, "tip": tip,
               "total": fare + tip + 80, "payment": 1 if card else 2 + (b >> 24) % 2,
               "passengers": 1 if b % 8 < 5 else 1 + (b >> 8) % 6,
               "from": 1 + (b >> 32) % 263 * ((b >> 48) % 263) // 263, "to": 1 + c % 263}


def test_scan_answers_as_an_independent_computation():
    table, report = list(trips(50000)), kernel("scan", "--rows", "50000", "--rounds", "1")
    paid = [sum(t["total"] for t in table if t["payment"] == kind) for kind in range(4)]
    hours = collections.Counter((t["pickup"] // 3600 % 24, t["passengers"]) for t in table)
    airport = [t["tip"] for t in table if t["from"] == 132 and t["distance"] > 1000 and t["payment"] == 1]
    pickups, week = [t["pickup"] for t in table], 7 * 86400
    tenth = [t["total"] for t in table[bisect.bisect_left(pickups, 9 * week):bisect.bisect_left(pickups, 10 * week)]]
    slow = [t["fare"] for t in table if t["distance"] >= 100 and t["distance"] * 36 < 6 * (t["dropoff"] - t["pickup"])]
    there = collections.Counter(t["to"] for t in table)
    busiest = min(there, key=lambda zone: (-there[zone], zone))
    assert report["paid"] == paid[1:]
    assert (report["airport_trips"], report["airport_tips"]) == (len(airport), sum(airport))
    assert (report["week_trips"], report["week_total"]) == (len(tenth), sum(tenth))
    assert (report["slow_trips"], report["slow_fare"]) == (len(slow), sum(slow))
    assert (report["busiest_zone"], report["busiest_trips"]) == (busiest, there[busiest])
    assert len(airport) > 5 and tenth and slow
    answers = [*paid, *(hours[hour, n] for hour in range(24) for n in range(8)), len(airport), sum(airport), len(tenth), sum(tenth),
               len(slow), sum(slow), busiest, there[busiest]]
    assert report["checksum"] == f"{fold(0, answers):016x}"


# Under coal run -------------------------------------------------------------------------------------------------------------

@needs_preload
@pytest.mark.parametrize("name", SMALL)
def test_a_kernel_has_the_same_result_with_remote_memory(coal, name):
    plain = kernel(name, *SMALL[name])
    assert plain["working_set_bytes"] > 3 << 20
    done = coal([KERNELS / name, *SMALL[name]], local="2M").must_succeed()
    remote = json.loads(done.out)
    assert remote.pop("seconds") > 0 and plain.pop("seconds") > 0
    assert remote == plain


# Command lines --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, options", [
    ("pagerank", ["--scale", "3"]), ("bfs", ["--searches", "0"]), ("bfs", ["--scale", "26", "--degree", "250"]),
    ("quicksort", ["--count", "many"]), ("kmeans", ["--clusters", "65"]), ("scan", ["rows"]), ("scan", ["--columns", "3"]),
    ("redisload", []), ("redisload", ["--socket", "x", "--phase", "del"]),
])
def test_a_wrong_option_ends_with_status_2_and_says_so(name, options):
    done = subprocess.run([KERNELS / name, *options], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2 and name in done.stderr and not done.stdout


# redisload -------------------------------------------------------------------------------------------------------------------

@pytest.fixture(name="server")
def fixture_server(reaper, tmp_path):
    path = tmp_path / "redis.sock"
    process = reaper.popen(["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", tmp_path],
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until(lambda: path.exists() or process.poll() is not None, 30, "redis answers")
    return path


def redisload(server, *options):
    return subprocess.run([KERNELS / "redisload", "--socket", server, "--keys", "300", "--operations", "2000", *options],
                          capture_output=True, text=True, timeout=60, check=False)


def test_redisload_reports_every_phase_and_leaves_what_it_stored(server):
    done = redisload(server)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("phase") for line in lines] == ["get_uniform", "get_zipf", "set_uniform", "set_zipf", None]
    assert all(line["operations"] == 2000 and line["p99_us"] >= line["p50_us"] > 0 for line in lines[:4])
    values = redis.Redis(unix_socket_path=str(server)).mget([f"key:{key:08d}" for key in range(300)])
    stores = [int.from_bytes(value[:4], "little") for value in values]
    assert sum(stores) == 300 + 2 * 2 * 2000
    assert lines[4]["checksum"] == f"{fold(0, stores):016x}"


def test_redisload_draws_keys_by_zipf_s_law(server):
    assert redisload(server, "--phase", "set_zipf").returncode == 0
    values = redis.Redis(unix_socket_path=str(server)).mget([f"key:{key:08d}" for key in range(300)])
    stores = sorted((int.from_bytes(value[:4], "little") - 1 for value in values), reverse=True)
    share = [(rank + 1) ** -0.99 for rank in range(300)]
    assert stores[0] == pytest.approx(4000 * share[0] / sum(share), rel=0.15)
    assert sum(stores[:30]) == pytest.approx(4000 * sum(share[:30]) / sum(share), rel=0.1)


def test_redisload_sees_a_byte_that_another_client_changed(reaper, server):
    client = redis.Redis(unix_socket_path=str(server))
    load = reaper.popen([KERNELS / "redisload", "--socket", server, "--keys", "300", "--operations", "10M", "--phase", "get_uniform"],
                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def damaged_and_seen():
        client.setrange("key:00000007", 500, b"!!")
        return load.poll() is not None
    wait_until(damaged_and_seen, 60, "redisload ends")
    assert load.returncode == 1 and b"wrong value of key 7 after 1 stores" in load.stderr.read()


# apps.py ---------------------------------------------------------------------------------------------------------------------

class Pretended(apps.Application):
    """An application whose runs end as they are told to: seconds, checksum and evicted pages by level."""

    def __init__(self, *runs):
        super().__init__("pretended")
        self.runs = list(runs)

    def run(self, bench, budget):
        seconds, checksum, evicted = self.runs.pop(0)
        stats = {"evicted": evicted, "bytes_in": 0, "bytes_out": 0, "resident_bytes": 8 << 20} if budget else None
        ended = apps.Ended(0, seconds, b"", "pretended: set up in 10.0 s\n", stats, seconds > apps.LIMIT_S)
        if ended.stopped:
            return self.stopped(ended)
        outcome = apps.Outcome(ended)
        outcome.seconds["pretended"], outcome.checksum = seconds, checksum
        return outcome


def one_round(*runs):
    return apps.Round(None, Pretended(*runs), apps.QUICK_SHARES, lambda text: None)


def test_slowdown_is_against_all_local_and_against_plain():
    values = one_round((2, "x", 0), (4, "x", 0), (6, "x", 9)).values
    assert values["app.pretended.local25.slowdown"] == 1.5 and values["app.pretended.local25.over_plain"] == 3
    assert values["app.pretended.local100.over_plain"] == 2 and values["app.pretended.working_set_mib"] == 8


def test_a_run_that_was_stopped_is_a_lower_bound_with_a_reason():
    measured = one_round((2, "x", 0), (4, "x", 0), (30.5, "x", 9))
    assert measured.values["app.pretended.local25.slowdown_at_least"] == 5
    assert "app.pretended.local25.slowdown" not in measured.values
    assert "20.0 s" in measured.notes["app.pretended.local25"]


@pytest.mark.parametrize("runs, complaint", [
    ([(2, "x", 0), (4, "y", 0)], "another result"),
    ([(2, "x", 0), (4, "x", 0), (6, "y", 9)], "another result"),
    ([(2, "x", 0), (4, "x", 1)], "were evicted although"),
    ([(2, "x", 0), (4, "x", 0), (6, "x", 0)], "nothing was evicted"),
])
def test_runs_that_prove_nothing_end_the_benchmark(runs, complaint):
    with pytest.raises(apps.Failure, match=complaint):
        one_round(*runs)


def test_medians_leave_out_what_was_stopped_in_any_round():
    results, spread = apps.summarise({"a.slowdown": [1, 3, 8], "b.slowdown": [2], "b.slowdown_at_least": [7]})
    assert results == {"a.slowdown": 3, "b.slowdown_at_least": 7} and spread["a.slowdown"] == [1, 8]


@needs_preload
def test_a_run_over_the_limit_is_stopped_and_leaves_nothing(tmp_path):
    bench = apps.Bench(BUILD, tmp_path, quick=True)
    ended = bench.run([KERNELS / "kmeans", "--points", "200K", "--iterations", "1000"], 2 << 20, limit=2)
    assert ended.stopped and ended.wall >= 2 and ended.stats["evicted"] > 0
    assert not Path(f"/dev/shm/coal.{ended.stats['pid']}").exists() and not Path(f"/proc/{ended.stats['pid']}").exists()


@needs_preload
def test_a_quick_run_has_its_keys_and_a_picture(tmp_path):
    told = []
    measured = apps.run(BUILD, quick=True, progress=told.append, only=["redis_get_zipf"])
    assert {"app.redis_get_zipf.local25.slowdown", "app.redis_get_zipf.local25.per_second", "app.redis_get_zipf.plain.seconds",
            "app.redis.working_set_mib"} <= measured.results.keys()
    assert not measured.notes and len(told) == 3
    apps.plot(measured.results, measured.spread, tmp_path, "a test")
    picture = (tmp_path / "slowdown.svg").read_text()
    assert "redis_get_zipf" in picture and picture.rstrip().endswith("</svg>")


def test_an_application_that_is_not_known_is_refused(tmp_path):
    done = subprocess.run([ROOT / "bench" / "apps.py", "--build", BUILD, "--only", "tetris", "--out", tmp_path], capture_output=True,
                          text=True, timeout=20, check=False)
    assert done.returncode == 2 and "no application tetris" in done.stderr
