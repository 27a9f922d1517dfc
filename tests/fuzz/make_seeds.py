#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write seeds for fuzz_request into a folder: valid conversations, with the fuzzer's predictable random numbers."""
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from memclient import ATTACH, AUTH, BYE, DISCARD, DROP, FORK, HELLO, NO_TOKEN, PING, READ, RESERVE, STAT, WRITE  # noqa: E402
from memclient import message, page, proof, runs  # noqa: E402

KEY = b"k" * 16


def drawn(n, size):
    return bytes([n]) * size


def record(connection, *messages, take=True, reopen=False, tick=False, reap=False):
    control = connection | take << 2 | reopen << 3 | tick << 4 | reap << 5
    data = b"".join(messages)
    assert len(data) < 65536
    return struct.pack("<BH", control, len(data)) + data


def hello():
    return message(HELLO, struct.pack("<HHI", 1, 1, 0) + bytes(32))


def attach(token=NO_TOKEN, lane=0):
    return message(ATTACH, token + struct.pack("<II32s", lane, 1, b"seed"))


def write(first, *pages, region=1):
    return message(WRITE, runs((first, len(pages))) + b"".join(pages), count=1, region=region)


def read(*vector, region=1):
    return message(READ, runs(*vector), count=len(vector), region=region)


def discard(*vector, region=1):
    return message(DISCARD, runs(*vector), count=len(vector), region=region)


def reserve(pages, region=1):
    return message(RESERVE, arg=pages, region=region)


# Without a key, the first hello draws 1 (the nonce) and the first attach 2 (the token).
start = [hello(), attach(), reserve(20)]
token = drawn(2, 16)
seeds = {
    "plain": record(0, *start, write(3, page("a"), page("b")), read((3, 2)), discard((3, 1)), read((3, 1)),
                    message(STAT, region=1), message(PING, b"hello", region=1), message(BYE, region=1)),
    "limits": record(0, *start, reserve(1000), reserve(379), reserve(-1), write(0, *[page("x")] * 3),
                     message(WRITE, runs((5, 1), (5, 1)) + 2 * page("d"), count=2, region=1),
                     discard((0, 1 << 31)), reserve(-1 << 63)),
    "tight": record(0, *start, write(0, *[page("t")] * 14))
    + record(0, write(60, *[page("u")] * 8), write(12, *[page("v")] * 5), reserve(380), message(FORK, region=1)),
    "fork": record(0, *start, write(0, page("p")), message(FORK, region=1), write(0, page("q")))
    + record(1, hello(), attach(drawn(3, 16)), read((0, 1), region=2), write(0, page("r"), region=2))
    + record(0, message(DROP, drawn(3, 16), region=1), read((0, 1))),
    "lanes": record(0, *start) + record(1, hello(), attach(token, 1), read((0, 1))) + record(2, hello(), attach(token, 0))
    + record(0, reserve(1)),
    "lease": record(0, *start, write(9, page("l"))) + record(0, hello(), attach(token), read((9, 1)), reopen=True)
    + record(0, reopen=True) + record(1, tick=True) + record(1, tick=True) + record(1, hello(), attach(token), tick=True),
    "backpressure": record(0, *start, write(0, page("z")), *[read(*[(0, 1)] * 100)] * 8, take=False) + record(0),
    "reap": record(0, *start, write(0, *[page("w")] * 14), discard((0, 512)))
    + record(0, write(100, *[page("v")] * 14))
    + record(0, message(FORK, region=1), message(DROP, token, region=1), reap=True),
    "edges": record(0, *start, write((1 << 36) - 1, page("e")), read(((1 << 36) - 1, 1)), discard((0, (1 << 32) - 1)),
                    read(((1 << 36) - 1, 2))),
}
auth = message(AUTH, proof(KEY, b"coal1 client", bytes(32), drawn(1, 32), bytes(16)))
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for name, data in seeds.items():
    (folder / name).write_bytes(b"\0" + data)
(folder / "key").write_bytes(b"\1" + record(0, hello(), auth, attach(), reserve(5), write(0, page("k"))))
(folder / "wrong-key").write_bytes(b"\1" + record(0, hello(), auth[:-1] + b"?", attach()))
