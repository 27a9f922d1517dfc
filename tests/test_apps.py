# SPDX-License-Identifier: Apache-2.0
"""Programs that people use, unchanged, with a budget far below their need. Each must give what it gives in a plain run."""

import hashlib
import subprocess

import pytest
import redis

from harness import APPS, PYTHON, ROOT, environment, needs_preload, wait_until

pytestmark = [needs_preload, pytest.mark.timeout(240)]

APP_SECONDS = 200


def plainly(argv, **options):
    return subprocess.run([str(a) for a in argv], env=environment(), capture_output=True, check=True, timeout=APP_SECONDS,
                          **options).stdout


# sqlite3 -------------------------------------------------------------------------------------------------------------------

SQL = """
CREATE TABLE account (id INTEGER PRIMARY KEY, name TEXT, city INTEGER, balance INTEGER);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150000)
INSERT INTO account SELECT i, printf('name %08d %s', (i * 7919) % 150001, hex(i * 104729)), (i * 31) % 997, (i * 1299709) % 100003 FROM n;
CREATE TABLE transfer (id INTEGER PRIMARY KEY, sender INTEGER, receiver INTEGER, amount INTEGER, note TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150000)
INSERT INTO transfer SELECT i, (i * 15485863) % 150000 + 1, (i * 32452843) % 150000 + 1, (i * 49979687) % 997,
  substr('the quick brown fox jumps over the lazy dog', i % 20, 20) FROM n;
CREATE INDEX by_name ON account (name);
CREATE INDEX by_sender ON transfer (sender);
SELECT count(*), sum(balance), max(name) FROM account;
SELECT city, count(*), sum(balance) FROM account GROUP BY city ORDER BY 3 DESC LIMIT 10;
SELECT a.name, sum(t.amount) AS s FROM account a JOIN transfer t ON t.sender = a.id GROUP BY a.id ORDER BY s DESC, a.id LIMIT 20;
BEGIN;
UPDATE account SET balance = balance - (SELECT coalesce(sum(amount), 0) FROM transfer WHERE sender = account.id) WHERE id % 3 = 0;
DELETE FROM transfer WHERE amount < 300;
COMMIT;
BEGIN; DELETE FROM account; ROLLBACK;
SELECT count(*), sum(balance), min(balance) FROM account;
SELECT count(DISTINCT note), sum(length(note)), sum(amount) FROM transfer;
SELECT id, name, balance FROM account ORDER BY balance DESC, name LIMIT 20;
PRAGMA integrity_check;
"""


def test_sqlite3_gives_the_same_answers_as_in_a_plain_run(coal):
    want = plainly(["sqlite3", ":memory:"], input=SQL.encode())
    assert want.endswith(b"ok\n")
    done = coal(["sqlite3", ":memory:"], stdin=SQL.encode(), local="6M", timeout=APP_SECONDS).must_succeed()
    assert done.out == want


# sort ----------------------------------------------------------------------------------------------------------------------

def test_gnu_sort_sorts_150_megabytes(coal, tmp_path):
    numbers, want, got = tmp_path / "numbers", tmp_path / "want", tmp_path / "got"
    with open(numbers, "w") as out:
        for first in range(0, 8_000_000, 100_000):
            out.write("".join(f"{(i * 2654435761 + 12345) % 10 ** 17:017d}\n" for i in range(first, first + 100_000)))
    plainly(["sort", "--parallel=2", "-S", "1G", "-o", want, numbers])
    coal(["sort", "--parallel=2", "-S", "1G", "-o", got, numbers], local="48M", timeout=APP_SECONDS).must_succeed()
    subprocess.run(["cmp", want, got], check=True)
    assert want.stat().st_size == numbers.stat().st_size


# python3 -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("allocator, options", [("malloc", {}), ("pymalloc", {"mmap": "256K"})])
def test_python_with_threads_and_children(coal, allocator, options):
    env = {"PYTHONHASHSEED": "0", "PYTHONMALLOC": allocator}
    argv = [PYTHON, ROOT / "tests" / "apps" / "python_work.py"]
    want = subprocess.run(argv, env=environment(**env), capture_output=True, check=True, timeout=APP_SECONDS).stdout
    assert len(want.splitlines()) == 10
    done = coal(argv, env=env, local="12M", timeout=APP_SECONDS, **options).must_succeed()
    assert done.out == want


# xz ------------------------------------------------------------------------------------------------------------------------

def compressible(size):
    words = [hashlib.sha256(b"%d" % i).hexdigest()[:3 + i % 9].encode() for i in range(4096)]
    state, out, length = 1, [], 0
    while length < size:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2 ** 64
        word = words[(state >> 40) % 4096 if state >> 63 else (state >> 58)]
        out.append(word)
        length += len(word)
    return b"".join(out)[:size]


def test_xz_round_trip_with_two_threads(coal, tmp_path):
    plain, packed = tmp_path / "plain", tmp_path / "plain.xz"
    plain.write_bytes(compressible(6 << 20))
    done = coal(["xz", "-T2", "-1", "--block-size=2MiB", "-c", plain], local="12M", timeout=APP_SECONDS).must_succeed()
    packed.write_bytes(done.out)
    assert packed.stat().st_size < plain.stat().st_size
    assert plainly(["xz", "-dc", packed]) == plain.read_bytes()
    back = coal(["xz", "-T2", "-dc", packed], local="3M", timeout=APP_SECONDS).must_succeed()
    assert back.out == plain.read_bytes()


# git -----------------------------------------------------------------------------------------------------------------------

def git(repository, *argv, **options):
    return plainly(["git", "-C", repository, *argv], **options)


def make_repository(at):
    plainly(["git", "init", "-q", at])
    stream = []
    for n in range(70):
        stream.append(f"commit refs/heads/main\nmark :{n + 1}\ncommitter T <t@example.org> {1700000000 + n} +0000\ndata 8\nnumber {n % 10}\n")
        for f in range(6):
            name = (n * 6 + f) % 150
            lines = "".join(f"{name} {i} {hashlib.md5(b'%d %d' % (i, n if i % 50 == n % 50 else 0)).hexdigest()}\n" for i in range(1500))
            stream.append(f"M 100644 inline dir{name % 10}/file{name}\ndata {len(lines)}\n{lines}\n")
    git(at, "fast-import", "--quiet", "--depth=1", input="".join(stream).encode())


def object_digest(repository):
    names = sorted(git(repository, "rev-list", "--objects", "--all", "--no-object-names").split())
    return hashlib.sha256(git(repository, "cat-file", "--batch", input=b"\n".join(names) + b"\n")).hexdigest()


PACKING = ["--window=20", "--depth=30"]


def test_git_repack_keeps_every_object(coal, tmp_path):
    repository = tmp_path / "repository"
    make_repository(repository)
    want = object_digest(repository)
    packs = repository / ".git/objects/pack"
    size = sum(p.stat().st_size for p in packs.glob("*.pack"))
    # The work is done by a child of git repack; test_git_pack_objects shows that such work is remote.
    coal(["git", "-C", repository, "-c", "pack.threads=2", "repack", "-adfq", *PACKING], local="4M", timeout=APP_SECONDS,
         remote=False).must_succeed()
    git(repository, "fsck", "--full", "--strict")
    assert object_digest(repository) == want
    assert sum(p.stat().st_size for p in packs.glob("*.pack")) < size


def test_git_pack_objects_packs_every_object(coal, tmp_path):
    repository, copy = tmp_path / "repository", tmp_path / "copy"
    make_repository(repository)
    names = git(repository, "rev-list", "--objects", "--all")
    done = coal(["git", "-C", repository, "pack-objects", "-q", "--threads=2", "--no-reuse-delta", "--no-reuse-object", "--stdout", *PACKING],
                stdin=names, local="4M", timeout=APP_SECONDS).must_succeed()
    plainly(["git", "init", "-q", copy])
    git(copy, "index-pack", "--stdin", "--strict", "--check-self-contained-and-connected", input=done.out)
    git(copy, "update-ref", "refs/heads/main", git(repository, "rev-parse", "main").decode().strip())
    assert object_digest(copy) == object_digest(repository)


# C++ -----------------------------------------------------------------------------------------------------------------------

def test_cxx_exceptions_containers_and_threads(coal):
    want = plainly([APPS / "cxx"])
    done = coal([APPS / "cxx"], local="8M").must_succeed()
    assert done.out == want


# redis ---------------------------------------------------------------------------------------------------------------------

KEYS = 12_000


def value(key, generation=0):
    seed = f"{key}/{generation}".encode()
    return hashlib.shake_128(seed).digest(500 + hashlib.md5(seed).digest()[0] * 60)


def expected(key):
    """What key must hold in the end: None when it was deleted."""
    if key % 16 == 5:
        return None
    return value(key, 1 if key % 8 == 3 else 0)


def in_pipelines(client, keys, command):
    for first in range(0, len(keys), 200):
        part = keys[first:first + 200]
        with client.pipeline(transaction=False) as pipe:
            for key in part:
                command(pipe, key)
            yield from zip(part, pipe.execute())


def wrong_keys(client):
    return [key for key, got in in_pipelines(client, range(KEYS), lambda pipe, key: pipe.get(key)) if got != expected(key)]


def redis_argv(folder, name, *more):
    return ["redis-server", "--port", "0", "--unixsocket", folder / name, "--dir", folder, "--save", "", "--appendonly", "no",
            "--dbfilename", "dump.rdb", "--enable-debug-command", "local", *more]


def connect(process, path):
    client = redis.Redis(unix_socket_path=str(path), socket_timeout=90)

    def up():
        assert process.poll() is None, process.returncode
        try:
            return client.ping()
        except (redis.ConnectionError, redis.BusyLoadingError):
            return False
    wait_until(up, 60, "redis answers")
    return client


def fill_and_change(client):
    list(in_pipelines(client, range(KEYS), lambda pipe, key: pipe.set(key, value(key))))
    changed = [key for key in range(KEYS) if key % 8 == 3]
    list(in_pipelines(client, changed, lambda pipe, key: pipe.set(key, value(key, 1))))
    deleted = [key for key in range(KEYS) if key % 16 == 5]
    list(in_pipelines(client, deleted, lambda pipe, key: pipe.delete(key)))


def wait_for_save(client):
    wait_until(lambda: not client.info("persistence")["rdb_bgsave_in_progress"], 90, "BGSAVE ends")
    assert client.info("persistence")["rdb_last_bgsave_status"] == "ok"


def test_redis_keeps_every_value_and_its_snapshot_too(coal_start, reaper, tmp_path):
    server = coal_start(redis_argv(tmp_path, "remote.sock"), errors=tmp_path / "errors", local="24M")
    client = connect(server.process, tmp_path / "remote.sock")
    fill_and_change(client)
    client.bgsave()
    # While the child writes the file, the parent changes what is in it: the child must not see that.
    for key, _ in in_pipelines(client, range(0, KEYS, 3), lambda pipe, key: pipe.set(key, b"too late")):
        pass
    wait_for_save(client)
    list(in_pipelines(client, range(0, KEYS, 3),
                      lambda pipe, key: pipe.delete(key) if expected(key) is None else pipe.set(key, expected(key))))
    assert wrong_keys(client) == []
    client.shutdown(nosave=True)
    assert server.process.wait(30) == 0

    plain = reaper.popen(redis_argv(tmp_path, "plain.sock"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    client = connect(plain, tmp_path / "plain.sock")
    assert wrong_keys(client) == []
    assert client.dbsize() == sum(expected(key) is not None for key in range(KEYS))


def test_redis_loads_a_snapshot_into_remote_memory(coal_start, reaper, tmp_path):
    plain = reaper.popen(redis_argv(tmp_path, "plain.sock"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    client = connect(plain, tmp_path / "plain.sock")
    fill_and_change(client)
    client.save()
    client.shutdown(nosave=True)
    plain.wait(30)

    server = coal_start(redis_argv(tmp_path, "remote.sock"), errors=tmp_path / "errors", local="24M")
    client = connect(server.process, tmp_path / "remote.sock")
    assert wrong_keys(client) == []
    client.shutdown(nosave=True)
    assert server.process.wait(30) == 0


def test_redis_check_would_see_a_wrong_value(reaper, tmp_path):
    """The comparison itself: one changed byte, one value that should be gone, one that is missing."""
    plain = reaper.popen(redis_argv(tmp_path, "plain.sock"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    client = connect(plain, tmp_path / "plain.sock")
    fill_and_change(client)
    client.setrange(100, 7, bytes([value(100)[7] ^ 1]))
    client.set(21, b"was deleted")
    client.delete(200)
    assert wrong_keys(client) == [21, 100, 200]
