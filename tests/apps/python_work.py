# SPDX-License-Identifier: Apache-2.0
"""Python on remote memory: big dicts and lists, threads, children by fork and by exec. Prints a digest of everything."""

import hashlib
import multiprocessing
import random
import subprocess
import sys
import threading


def containers(seed, count):
    dice = random.Random(seed)
    table = {f"key-{dice.randrange(10 ** 9)}-{i}": [dice.random(), str(i) * 5, {i: i * i}] for i in range(count)}
    for key in sorted(table)[::7]:
        del table[key]
    digest = hashlib.sha256()
    for key in sorted(table):
        digest.update(f"{key} {table[key]}".encode())
    return digest.hexdigest()


def main():
    inherited = {i: f"value {i} " * 4 for i in range(60_000)}

    print("containers", containers(1, 40_000))

    results = {}
    threads = [threading.Thread(target=lambda n=n: results.__setitem__(n, containers(n, 8_000))) for n in range(10, 14)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in sorted(results):
        print("thread", number, results[number])

    def child(number, queue):
        digest = hashlib.sha256()
        for key in sorted(inherited):
            digest.update(inherited[key].encode())
            inherited[key] = "overwritten"
        queue.put((number, digest.hexdigest(), containers(number, 4_000)))

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=child, args=(n, queue)) for n in range(20, 23)]
    for process in children:
        process.start()
    for answer in sorted(queue.get(timeout=90) for _ in children):
        print("child", *answer)
    for process in children:
        process.join()
        if process.exitcode:
            sys.exit(f"a child ended with {process.exitcode}")

    with context.Pool(2) as pool:
        print("pool", *pool.starmap(containers, [(30 + n, 5_000) for n in range(4)]))

    if any(inherited[i] != f"value {i} " * 4 for i in inherited):
        sys.exit("the parent sees what a child wrote")

    code = "import sys; d = {i: str(i) * 9 for i in range(50000)}; print(sum(len(v) for v in d.values()), sys.stdin.read())"
    print("subprocess", subprocess.run([sys.executable, "-c", code], input="from the parent", capture_output=True, text=True,
                                       check=True).stdout.strip())


main()
