# SPDX-License-Identifier: Apache-2.0
"""Many clients at once, with lanes, forks, reconnects and lost connections; every byte is checked against a model."""
import random
import threading

import pytest

from memclient import ABSENT, Client, Memserver, Refused, page, wait_until

CLIENTS, ROUNDS, STEPS, PAGES = 6, 6, 60, 100


class Worker(threading.Thread):
    def __init__(self, memserver, seed):
        super().__init__()
        self.memserver, self.random, self.error = memserver, random.Random(seed), None

    def run(self):
        try:
            for _ in range(ROUNDS):
                self.round()
        except BaseException as e:  # the main thread raises it again
            self.error = e

    def connect(self, **fields):
        return Client(self.random.choice(self.memserver.addresses), **fields)

    def check(self, client, model, first):
        try:
            assert client.read(first) == model.get(first)
        except Refused as e:
            assert e.status == ABSENT and first not in model

    def fork(self, client, model, first):
        ticket = client.fork()
        client.write(first, page("parent"))
        before, model[first] = dict(model), page("parent")
        with self.connect(token=ticket) as child:
            self.check(child, before, first)
            child.write(first, page("child"))
            if self.random.random() < 0.5:
                child.bye()
        self.check(client, model, first)

    def round(self):
        first_lane = self.connect()
        first_lane.reserve(PAGES)
        lanes = [first_lane] + [self.connect(token=first_lane.token, lane=n) for n in (1, 2)]
        model = {}
        try:
            for step in range(STEPS):
                lane, at, what = self.random.randrange(3), self.random.randrange(PAGES - 8), self.random.randrange(8)
                if what < 3:
                    data = [page(f"{step} {n} ") for n in range(self.random.randrange(1, 8))]
                    lanes[lane].write(at, b"".join(data))
                    model.update({at + n: one for n, one in enumerate(data)})
                elif what < 5:
                    self.check(lanes[lane], model, at)
                elif what < 6:
                    lanes[lane].discard((at, 5))
                    for n in range(at, at + 5):
                        model.pop(n, None)
                elif what < 7:
                    self.fork(lanes[lane], model, at)
                else:
                    old, lanes[lane] = lanes[lane], self.connect(token=first_lane.token, lane=lane)
                    old.close()
            for at in range(PAGES):
                self.check(lanes[0], model, at)
            if self.random.random() < 0.5:
                lanes[0].bye()
        finally:
            for lane in lanes:
                lane.close()


@pytest.mark.parametrize("threads", ["1", "4"])
def test_many_clients_with_everything_at_once(tmp_path, threads):
    options = ("--threads", threads, "--lease", "0.2", "--metrics", "127.0.0.1:0")
    with Memserver(tmp_path, *options, listen=("127.0.0.1:0", f"unix:{tmp_path}/s")) as memserver:
        workers = [Worker(memserver, seed) for seed in range(CLIENTS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for worker in workers:
            if worker.error:
                raise worker.error
        wait_until(lambda: memserver.metrics()["memserver_clients"] == 0)
        wait_until(lambda: memserver.metrics()["memserver_used_bytes"] == 0)
        assert memserver.metrics()["memserver_promised_bytes"] == 0
