# SPDX-License-Identifier: GPL-2.0
"""RDMA devices that go while they are in use: it never takes long, and nothing is lost.

removal.py [TIMES]: how often in a row, 50 times by default.
"""

import random
import subprocess
import sys
import time

from lib import *

TIMES = int(sys.argv[1]) if len(sys.argv) > 1 else 50
SIZE = 8 << 20
DELETE = f"rdma link delete {RDMA}0"
ADD = f"rdma link add {RDMA}0 type {RDMA} netdev {NETDEV}"
# Writes a file and reads it back, again and again; one number for each round.
LOAD = """
import mmap, os, sys
path, size = sys.argv[1], int(sys.argv[2])
rounds = 0
room = mmap.mmap(-1, 1 << 20)
while not os.path.exists("/tmp/enough"):
    rounds += 1
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    for at in range(0, size, 1 << 20):
        room[:] = (b"%08d" % (rounds * 1000 + (at >> 20))) * (1 << 17)
        os.pwritev(fd, [room], at)
    os.fsync(fd)
    for at in range(0, size, 1 << 20):
        os.preadv(fd, [room], at)
        if room[:] != (b"%08d" % (rounds * 1000 + (at >> 20))) * (1 << 17):
            sys.exit(f"round {rounds}: what was read back at {at >> 20} MiB differs")
    os.close(fd)
    print(rounds, flush=True)
"""


class Loads:
    """Two jobs that work on files of a mount until they are told that it is enough."""

    def __init__(self, at):
        run("rm", "-f", "/tmp/enough")
        self.logs = [f"/tmp/load-{n}" for n in range(2)]
        self.jobs = []
        for n, name in enumerate(self.logs):
            with open(name, "w") as log:
                self.jobs.append(subprocess.Popen(
                    [sys.executable, "-c", LOAD, f"{at}/load-{n}", str(SIZE)],
                    stdout=log, stderr=subprocess.STDOUT))

    def rounds(self):
        return [len(read(name).split()) for name in self.logs]

    def alive(self):
        for job, name in zip(self.jobs, self.logs):
            expect(job.poll() is None, f"a load ended: {read(name)[-500:]}")

    def end(self, limit):
        write("/tmp/enough", "")
        for job, name in zip(self.jobs, self.logs):
            try:
                status = job.wait(limit * SLOWNESS)
            except subprocess.TimeoutExpired:
                raise Failed(f"a load hangs: {read(name)[-100:]}") from None
            equal(status, 0, f"exit of a load that said {read(name)[-500:]}")

    def kill(self):
        for job in self.jobs:
            job.kill()


def again_and_again(where, command):
    """Remove and add the device under load; returns how long removals took."""
    took = []
    for turn in range(TIMES):
        time.sleep(0.2 + random.random())
        if where == "client" and turn % 5 == 4:
            link("down", "client")
        begun = time.monotonic()
        command(DELETE)
        took.append(time.monotonic() - begun)
        time.sleep(random.random())
        command(ADD)
        if where == "client" and turn % 5 == 4:
            time.sleep(random.random() * 2)
            link("up", "client")
    return took


for vers in ("3", "4.2"):
    for where in ("client", "server"):
        command = on_server if where == "server" else lambda text: run(*text.split())
        with check(f"v{vers}: the {where}'s device goes {TIMES} times", 180 + 12 * TIMES), \
                mounted(vers) as at:
            loads = Loads(at)
            try:
                time.sleep(2)
                took = again_and_again(where, command)
                loads.alive()
                before = loads.rounds()
                begun = time.monotonic()
                wait_for(lambda: all(new > old + 1 for new, old in zip(loads.rounds(), before)),
                         120, f"both loads go on after {before} rounds")
                say(f"{vers}, {where}: removals took {min(took):.1f} to {max(took):.1f} s, loads went "
                    f"on in {time.monotonic() - begun:.1f} s, rounds {loads.rounds()}, "
                    f"connections {xprt_stats(at)['connect_count']}")
                loads.end(120)
            finally:
                loads.kill()
            expect(max(took) < 20 * SLOWNESS, f"a removal took {max(took):.1f} s")
        with check(f"v{vers}: nothing is in use afterwards"):
            if NODES == 1:
                raise Skip("the server uses the module too")
            wait_for(lambda: use_count() == 0, 20, "use count 0")
done()
