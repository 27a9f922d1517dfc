#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How much slower do programs get when only a share of their memory is local?

Runs each application plainly and under `coal run` with 100, 75, 50, 25 and 12.5 % of its working set resident, checks that all
runs give the same result, and reports times, slowdowns and a picture of them. bench/README.md says what each application does.
"""
import argparse
import hashlib
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
SHARES = (1, 0.75, 0.5, 0.25, 0.125)
QUICK_SHARES = (1, 0.25)
EVERYTHING = "2G"   # a budget that no application here fills: nothing is evicted
LIMIT_S = 30        # a measured phase that takes longer is stopped
START_UP_S = 0.5    # at most, of `coal run` and the program, before the program's own clock starts
SET_UP = re.compile(r"^\w+: set up in ([0-9.]+) s$", re.M)

# results: flat keys, medians over the repetitions. spread: lowest and highest under the same keys. notes: what was stopped.
Measured = namedtuple("Measured", "results spread notes")


class Failure(Exception):
    """Ends the benchmark with one sentence: a result is wrong, or nothing was measured."""


def level_name(share):
    return "local" + f"{100 * share:g}".replace(".", "_")


# Processes -----------------------------------------------------------------------------------------------------------------

class Ended:
    """A program that ended or was stopped. stats: the pager's statistics, None in a plain run."""

    def __init__(self, status, wall, out, err, stats, stopped):
        self.status, self.wall, self.out, self.err, self.stats, self.stopped = status, wall, out, err, stats, stopped

    def at_least(self):
        """Seconds that the phase under way had taken when the program was stopped."""
        return max(0, self.wall - START_UP_S - sum(map(float, SET_UP.findall(self.err))))


def environment():
    kept = {k: v for k, v in os.environ.items() if not k.startswith("COAL_") and k != "LD_PRELOAD"}
    return dict(kept, LC_ALL="C")


def end(process):
    """Ends a program: politely, so that coal run passes it on, writes statistics and tidies up; then its group for certain."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


class Bench:
    """Where things are, and how programs are run. budget: bytes or a size as coal run reads it; None is a plain run."""

    def __init__(self, build, folder, quick):
        self.build, self.folder, self.quick = Path(build).resolve(), Path(folder), quick

    def command(self, argv, budget):
        argv = [str(a) for a in argv]
        if budget is None:
            return argv
        coal, stats = str(self.build / "coal"), str(self.folder / "stats.json")
        return [coal, "run", "--local", str(budget), "--stats", stats, "--", *argv]

    def start(self, argv, budget, **streams):
        if budget is not None:
            (self.folder / "stats.json").unlink(missing_ok=True)
        return subprocess.Popen(self.command(argv, budget), env=environment(), start_new_session=True, cwd=self.folder,
                                **streams)

    def stats(self, budget):
        path = self.folder / "stats.json"
        return json.loads(path.read_text(encoding="ascii")) if budget is not None and path.exists() else None

    def run(self, argv, budget, stdin=subprocess.DEVNULL, good=0, limit=LIMIT_S):
        """Runs a program to its end, or stops it when its set-up and work have taken longer than the limit."""
        with open(self.folder / "out", "w+b") as out, open(self.folder / "err", "w+b") as err:
            began = time.monotonic()
            process = self.start(argv, budget, stdin=stdin, stdout=out, stderr=err)
            try:
                process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                pass
            finally:
                stopped, wall = process.poll() is None, time.monotonic() - began
                end(process)
        ended = Ended(process.returncode, wall, (self.folder / "out").read_bytes(),
                      (self.folder / "err").read_text(encoding="utf-8", errors="replace"), self.stats(budget), stopped)
        if not stopped and ended.status != good:
            reason = ended.err.strip()[-500:] or "it gave no reason"
            raise Failure(f"{Path(argv[0]).name} ended with status {ended.status}: {reason}")
        return ended


# Applications ----------------------------------------------------------------------------------------------------------------

class Outcome:
    """One run of an application: seconds of each of its figures, or at_least where it was stopped; the result's checksum."""

    def __init__(self, ended):
        self.stats = ended.stats
        self.working_set = self.stats["resident_bytes"] if self.stats else None
        self.seconds, self.at_least, self.more, self.checksum = {}, {}, {}, None


class Application:
    """name: also that of its working set. figures: the names under which it reports times."""

    def __init__(self, name, figures=None):
        self.name, self.figures = name, figures or [name]

    def prepare(self, bench):
        """Make input files; once, before all runs."""

    def stopped(self, ended):
        outcome = Outcome(ended)
        outcome.at_least[self.name] = ended.at_least()
        return outcome


class Kernel(Application):
    """A program of bench/apps, which times itself."""

    def __init__(self, name, quick_options=()):
        super().__init__(name)
        self.quick_options = quick_options

    def run(self, bench, budget):
        argv = [bench.build / "bench" / "apps" / self.name, *(self.quick_options if bench.quick else ())]
        ended = bench.run(argv, budget)
        if ended.stopped:
            return self.stopped(ended)
        report = json.loads(ended.out)
        outcome = Outcome(ended)
        outcome.seconds[self.name], outcome.checksum = report["seconds"], report["checksum"]
        return outcome


class Sort(Application):
    """GNU sort in memory and with one thread, from start to end."""

    LINE = 32 + 16  # what sort keeps of a line besides its text: a struct line, and half of one for merging

    def lines(self, count):
        raise NotImplementedError

    def prepare(self, bench):
        with open(bench.folder / f"{self.name}.in", "w", encoding="ascii") as file:
            file.writelines(self.lines(self.count(bench)))

    @staticmethod
    def count(bench):
        return 60000 if bench.quick else 200000

    def run(self, bench, budget):
        output = bench.folder / f"{self.name}.out"
        source = bench.folder / f"{self.name}.in"
        ended = bench.run(["sort", "--parallel=1", "--buffer-size=256M", "-o", output, source], budget)
        if ended.stopped:
            return self.stopped(ended)
        outcome = Outcome(ended)
        outcome.seconds[self.name] = ended.wall
        # sort frees its buffer before it ends, so nothing is resident by then.
        outcome.working_set = output.stat().st_size + self.LINE * self.count(bench)
        outcome.checksum = hashlib.sha256(output.read_bytes()).hexdigest()
        output.unlink()
        return outcome


class SortRecords(Sort):
    """Records of 100 bytes in no order at all."""

    def lines(self, count):
        keys = hashlib.shake_128(b"sort").hexdigest(8 * count)
        for i in range(count):
            yield f"{keys[16 * i:16 * i + 16]} record {i:08d} {'of a hundred bytes, as in the sorting contests ':<66.66}\n"


class SortLogs(Sort):
    """The logs of eight machines, one after the other; each is in order of time."""

    def lines(self, count):
        messages = ("GET /index.html 200", "POST /login 302", "GET /style.css 304", "GET /missing 404")
        clock = random.Random(1)
        for machine in range(8):
            seconds = 0.0
            for _ in range(count // 8):
                seconds += clock.expovariate(count / 8 / 86400)
                whole = int(seconds)
                client = ".".join(str(clock.randrange(256)) for _ in range(3))
                yield (f"2026-11-{1 + whole // 86400:02d}T{whole // 3600 % 24:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}."
                       f"{int(seconds * 1000) % 1000:03d} web{machine} client 10.{client} "
                       f"{clock.choice(messages):<20} {clock.getrandbits(20)} bytes\n")


class Sqlite(Application):
    """sqlite3 with a database in memory: a script of single statements."""

    SET_UP = """.bail on
CREATE TEMP TABLE clock (at REAL);
INSERT INTO clock VALUES (julianday('now'));
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price INTEGER, stock INTEGER);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {items})
INSERT INTO item SELECT i, printf('item %08d of the catalogue, %s', (i * 7919) % {items}, hex(i * 104729)),
  (i * 1299709) % 100003, 1000 FROM n;
CREATE TABLE sale (id INTEGER PRIMARY KEY, item INTEGER, customer INTEGER, amount INTEGER, note TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {sales})
INSERT INTO sale SELECT i, (i * 15485863) % {items} + 1, (i * 32452843) % {customers}, (i * 49979687) % 997,
  substr('leave it at the door, ring twice, mind the dog, and do not wake the neighbours; many thanks', i % 30, 40 + i % 20)
  FROM n;
CREATE INDEX by_customer ON sale (customer);
.output stderr
SELECT printf('sqlite: set up in %.3f s', (julianday('now') - at) * 86400) FROM clock;
.output stdout
UPDATE clock SET at = julianday('now');
"""
    TEAR_DOWN = """SELECT printf('seconds %.3f', (julianday('now') - at) * 86400) FROM clock;
SELECT count(*), sum(stock), max(name) FROM item;
SELECT count(*), sum(amount), sum(length(note)) FROM sale;
.exit 7
"""
    REACHED_THE_END = 7  # .exit with a status ends without taking the database apart: what was resident can still be read

    def prepare(self, bench):
        items, sales, statements = (160000, 320000, 15000)
        customers, draw = sales // 10, random.Random(2)
        with open(bench.folder / "script.sql", "w", encoding="ascii") as file:
            file.write(self.SET_UP.format(items=items, sales=sales, customers=customers))
            for i in range(statements):
                file.write(self.statement(i, draw, items, sales, customers))
            file.write(self.TEAR_DOWN)

    @staticmethod
    def statement(i, draw, items, sales, customers):
        """Of twenty statements: twelve point queries, four updates, two joins, two ranges; now and then a scan of it all."""
        if i % 5000 == 2500:
            return "SELECT item % 100, count(*), sum(amount) FROM sale GROUP BY 1 ORDER BY 3 DESC, 1 LIMIT 5;\n"
        kind = i % 20
        if kind < 12:
            return f"SELECT name, price FROM item WHERE id = {draw.randint(1, items)};\n"
        if kind < 16:
            return f"UPDATE item SET stock = stock - 1 WHERE id = {draw.randint(1, items)};\n"
        if kind < 18:
            return ("SELECT sum(s.amount * i.price), max(i.name) FROM sale s JOIN item i ON i.id = s.item "
                    f"WHERE s.customer = {draw.randrange(customers)};\n")
        first = draw.randint(1, sales)
        return f"SELECT count(*), sum(amount), min(note) FROM sale WHERE id BETWEEN {first} AND {first + 200};\n"

    def run(self, bench, budget):
        with open(bench.folder / "script.sql", "rb") as script:
            ended = bench.run(["sqlite3", "-batch", ":memory:"], budget, stdin=script, good=self.REACHED_THE_END)
        if ended.stopped:
            return self.stopped(ended)
        outcome = Outcome(ended)
        timed = re.search(rb"^seconds ([0-9.]+)\n", ended.out, re.M)
        outcome.seconds[self.name] = float(timed[1])
        outcome.checksum = hashlib.sha256(ended.out.replace(timed[0], b"")).hexdigest()
        return outcome


class Redis(Application):
    """redis-server, asked over a UNIX socket by redisload, which is not under coal run."""

    PHASES = ("get_uniform", "get_zipf", "set_uniform", "set_zipf")

    def __init__(self, phases=PHASES):
        super().__init__("redis", [f"redis_{phase}" for phase in phases])
        self.phases = phases

    def run(self, bench, budget):
        path, log = bench.folder / "redis.sock", bench.folder / "redis.log"
        argv = ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"]
        with open(log, "wb") as output:
            server = bench.start(argv, budget, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            self.wait_until_up(server, path, log)
            ended = bench.run(self.load(bench, path), None)
        finally:
            end(server)
            path.unlink(missing_ok=True)
        ended.stats = bench.stats(budget)
        return self.outcome(ended)

    def load(self, bench, path):
        sizes = ["--keys", "20000", "--operations", "5000"] if bench.quick else []
        phase = "all" if self.phases == self.PHASES else self.phases[0]
        return [bench.build / "bench" / "apps" / "redisload", "--socket", path, "--phase", phase, *sizes]

    @staticmethod
    def wait_until_up(server, path, log):
        end = time.monotonic() + LIMIT_S
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as link:
                    link.connect(str(path))
                return
            except OSError:
                if server.poll() is not None or time.monotonic() > end:
                    raise Failure(f"redis-server does not answer: {log.read_text(errors='replace').strip()[-500:]}") from None
            time.sleep(0.01)

    def outcome(self, ended):
        outcome = Outcome(ended)
        lines = [json.loads(line) for line in ended.out.splitlines()]
        for line in lines:
            if "phase" not in line:
                outcome.checksum = line["checksum"]
                continue
            name = f"redis_{line['phase']}"
            outcome.seconds[name] = line["seconds"]
            outcome.more.update({f"{name}.per_second": line["operations"] / line["seconds"],
                                 f"{name}.p50_us": line["p50_us"], f"{name}.p99_us": line["p99_us"]})
        if ended.stopped:
            waiting = [name for name in self.figures if name not in outcome.seconds]
            outcome.at_least = {name: ended.at_least() if name == waiting[0] else 0 for name in waiting}
        return outcome


def applications(quick, only):
    """Those that `only` names (an application, or one figure of redis), or all; fewer of them when quick."""
    chosen = [Redis(("get_zipf",)), SortRecords("sort"), Kernel("pagerank", ["--scale", "18", "--iterations", "3"])]
    if not quick:
        chosen = [Redis(), SortRecords("sort"), SortLogs("sort_logs"), Sqlite("sqlite"), Kernel("pagerank"), Kernel("bfs"),
                  Kernel("quicksort"), Kernel("kmeans"), Kernel("scan")]
    if not only:
        return chosen
    known = {name: app for app in chosen for name in (app.name, *app.figures)}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise Failure(f"there is no application {unknown[0]}{' in a quick run' if quick else ''}: give {', '.join(known)}")
    phases = tuple(name[6:] for name in only if name.startswith("redis_"))
    if len(phases) == 1 and "redis" not in only:
        known[f"redis_{phases[0]}"] = Redis(phases)
    return list(dict.fromkeys(known[name] for name in only))


# Measuring -------------------------------------------------------------------------------------------------------------------

class Round:
    """One run of an application at each level; flat values and notes of it."""

    def __init__(self, bench, app, shares, progress):
        self.bench, self.app, self.progress = bench, app, progress
        self.plain = self.all_local = self.checksum = None
        self.values, self.notes = {}, {}
        self.one("plain", None)
        self.one(level_name(1), EVERYTHING)
        working_set = self.all_local.working_set
        self.values[f"app.{app.name}.working_set_mib"] = working_set / MIB
        for share in shares[1:]:
            self.one(level_name(share), int(working_set * share) // 4096 * 4096)

    def one(self, level, budget):
        name = f"{self.app.name}, {level}"
        outcome = self.app.run(self.bench, budget)
        self.check(name, level, outcome)
        if level == "plain":
            self.plain = outcome
        if level == level_name(1):
            self.all_local = outcome
        self.add_times(level, outcome)
        for key, value in outcome.more.items():
            figure, what = key.split(".")
            self.values[f"app.{figure}.{level}.{what}"] = value
        if outcome.stats:
            key = f"app.{self.app.name}.{level}"
            self.values[f"{key}.fetched_mib"] = outcome.stats["bytes_in"] / MIB
            self.values[f"{key}.written_mib"] = outcome.stats["bytes_out"] / MIB
        times = [f"{seconds:.2f} s" for seconds in outcome.seconds.values()]
        times += [f"> {seconds:.1f} s" for seconds in outcome.at_least.values()]
        self.progress(f"{name}: {', '.join(times)}")

    def check(self, name, level, outcome):
        """The result is that of the plain run, and what should have been remote was."""
        self.checksum = self.checksum or outcome.checksum
        if not outcome.at_least and outcome.checksum != self.checksum:
            raise Failure(f"{name}: another result than before: checksum {outcome.checksum} instead of {self.checksum}")
        if level in ("plain", level_name(1)) and outcome.at_least:
            raise Failure(f"{name}: took more than {LIMIT_S} s, and so there is nothing to compare with: is the machine busy?")
        if level == "plain":
            return
        if not outcome.stats and not outcome.at_least:
            raise Failure(f"{name}: coal run left no statistics")
        evicted = outcome.stats["evicted"] if outcome.stats else None
        if level == level_name(1) and evicted:
            raise Failure(f"{name}: {evicted} pages were evicted although all were to be local")
        if level != level_name(1) and evicted == 0:
            raise Failure(f"{name}: nothing was evicted: this run shows nothing")

    def add_times(self, level, outcome):
        for figure, seconds in outcome.seconds.items():
            key = f"app.{figure}.{level}"
            self.values[f"{key}.seconds"] = seconds
            if level != "plain":
                self.values[f"{key}.slowdown"] = seconds / self.all_local.seconds[figure]
                self.values[f"{key}.over_plain"] = seconds / self.plain.seconds[figure]
        for figure, seconds in outcome.at_least.items():
            key = f"app.{figure}.{level}"
            self.values[f"{key}.seconds_at_least"] = seconds
            self.values[f"{key}.slowdown_at_least"] = seconds / self.all_local.seconds[figure]
            self.values[f"{key}.over_plain_at_least"] = seconds / self.plain.seconds[figure]
            self.notes[key] = f"stopped after {LIMIT_S} s, set-up included: its work had taken more than {seconds:.1f} s"
            if not seconds:
                self.notes[key] = f"not begun when the run was stopped after {LIMIT_S} s"


def summarise(samples):
    """Medians, and lowest and highest. A level that was stopped in any round counts as stopped in all."""
    stopped = {key[:-len("_at_least")] for key in samples if key.endswith("_at_least")}
    kept = {key: values for key, values in sorted(samples.items()) if key not in stopped}
    return ({key: round(statistics.median(values), 4) for key, values in kept.items()},
            {key: [round(min(values), 4), round(max(values), 4)] for key, values in kept.items()})


def run(build, quick=False, progress=lambda text: None, repeat=1, only=None):
    """Measure in whole rounds, each application at every level. Raises Failure when a result is wrong."""
    samples, notes = {}, {}
    with tempfile.TemporaryDirectory(prefix="coal-apps.") as folder:
        bench, chosen = Bench(build, folder, quick), applications(quick, only)
        for app in chosen:
            app.prepare(bench)
        for _ in range(repeat):
            for app in chosen:
                measured = Round(bench, app, QUICK_SHARES if quick else SHARES, progress)
                notes.update(measured.notes)
                for key, value in measured.values.items():
                    samples.setdefault(key, []).append(value)
    return Measured(*summarise(samples), notes)


# Showing ---------------------------------------------------------------------------------------------------------------------

def figures_of(results):
    return list(dict.fromkeys(key.split(".")[1] for key in results if key.endswith(".plain.seconds")))


def cell(results, key):
    if key in results:
        return f"{results[key]:.2f}"
    return f"> {results[key + '_at_least']:.1f}" if key + "_at_least" in results else "-"


def table(results):
    """Rows of text: slowdown against all-local at each level; then all-local against plain."""
    rows = [f"{'slowdown (time / time all local)':<34}{'plain s':>9}" + "".join(f"{100 * s:>8g} %" for s in SHARES)
            + f"{'100 % / plain':>15}"]
    for figure in figures_of(results):
        key = f"app.{figure}"
        rows.append(f"{figure:<34}{results[f'{key}.plain.seconds']:>9.2f}"
                    + "".join(f"{cell(results, f'{key}.{level_name(s)}.slowdown'):>10}" for s in SHARES)
                    + f"{results[f'{key}.{level_name(1)}.over_plain']:>15.2f}")
    return rows


def write_plot_data(path, results, spread):
    """A data set a figure: share, slowdown, lowest, highest, over plain, lower bound where the run was stopped."""
    with open(path, "w", encoding="ascii") as file:
        for figure in figures_of(results):
            file.write(f"# {figure}\n")
            for share in SHARES:
                key = f"app.{figure}.{level_name(share)}"
                if f"{key}.slowdown" in results:
                    slowdown, (low, high) = results[f"{key}.slowdown"], spread[f"{key}.slowdown"]
                    file.write(f"{100 * share:g} {slowdown} {low} {high} {results[f'{key}.over_plain']} NaN\n")
                elif results.get(f"{key}.slowdown_at_least", 0) > 0:
                    file.write(f"{100 * share:g} NaN NaN NaN NaN {results[f'{key}.slowdown_at_least']}\n")
            file.write("\n\n")


def plot(results, spread, out, about):
    """Draw slowdown.svg in the folder `out`; about is a line of small print."""
    os.makedirs(out, exist_ok=True)
    data = os.path.join(out, "slowdown.dat")
    write_plot_data(data, results, spread)
    defines = f"data='{data}'; have='{' '.join(figures_of(results))}'; about='{about}'"
    output = f"set output '{os.path.join(out, 'slowdown.svg')}'"
    subprocess.run(["gnuplot", "-e", f"{output}; {defines}", str(HERE / "slowdown.gp")], check=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", default=str(HERE.parent / "build"), help="the build folder")
    parser.add_argument("--out", help="where slowdown.svg goes (default: bench in the build folder)")
    parser.add_argument("--quick", action="store_true", help="three applications, smaller, at 100 and 25 %%")
    parser.add_argument("--only", action="append", metavar="NAME", help="this application only; can be given several times")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="rounds, of which medians are taken (default 1)")
    parser.add_argument("--json", metavar="FILE", help="write results, spread and notes to FILE")
    arguments = parser.parse_args()
    if arguments.repeat < 1:
        parser.error("--repeat: give at least 1")
    try:
        applications(arguments.quick, arguments.only)
    except Failure as failure:
        parser.error(str(failure))
    for program in ("coal", "memserver", "libcoal-malloc.so", "bench/apps/redisload"):
        if not os.path.exists(os.path.join(arguments.build, program)):
            parser.error(f"there is no {program} in {arguments.build}: run `make bench` or `make all tests` first")
    return arguments


def main():
    arguments = parse_arguments()
    try:
        measured = run(arguments.build, arguments.quick, lambda text: print(text, file=sys.stderr, flush=True),
                       arguments.repeat, arguments.only)
    except Failure as failure:
        sys.exit(f"apps.py: {failure}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(measured._asdict(), file, indent=1)
            file.write("\n")
    plot(measured.results, measured.spread, arguments.out or os.path.join(arguments.build, "bench"),
         f"{len(os.sched_getaffinity(0))} cores, Linux {os.uname().release}, medians of {arguments.repeat}")
    print("\n".join(table(measured.results)))
    for key, note in measured.notes.items():
        print(f"{key}: {note}")


if __name__ == "__main__":
    main()
