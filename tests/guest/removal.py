# SPDX-License-Identifier: GPL-2.0
"""RDMA devices that go while they are in use: it never takes long, and nothing is lost.

removal.py [TIMES [WORD]]: how often in a row each kind of removal, with LONG 50 times, else once; only
kinds with that word.
"""

import random
import subprocess
import sys
import time

from lib import *

TIMES = int(sys.argv[1]) if len(sys.argv) > 1 else 50 if LONG else 1
SIZE = 8 << 20
# Within this time a device is gone, however busy it was; and a module that nobody uses can go.
GONE, UNLOAD = 20, 5
SETTLE = f"""
for n in $(seq 200); do [ -e /sys/class/net/$NETDEV ] && break; sleep 0.1; done
case $ROLE in client) n=2 ;; *) n=1 ;; esac
ip link set $NETDEV mtu 9000
ip addr add 10.0.0.$n/24 dev $NETDEV
ip addr add fd00::$n/64 dev $NETDEV nodad
ip link set $NETDEV up
rdma link add {RDMA}0 type {RDMA} netdev $NETDEV
"""
# What takes the device away, and what gives it back.
KINDS = {
    "rdma link delete": (f"rdma link delete {RDMA}0",
                         f"rdma link add {RDMA}0 type {RDMA} netdev $NETDEV"),
    # The driver unregisters the network device, as for a card that is pulled.
    "network device unregistered": (
        "v=$(readlink -f /sys/class/net/$NETDEV/device); basename $v >/tmp/nic; "
        "cat /tmp/nic >/sys/bus/virtio/drivers/virtio_net/unbind",
        "cat /tmp/nic >/sys/bus/virtio/drivers/virtio_net/bind" + SETTLE),
    # It comes back when that namespace ends.
    "network device moved to a namespace that ends": (
        "ip netns add away && ip link set $NETDEV netns away",
        "ip netns delete away" + SETTLE),
}
# A packet of rxe keeps its queue pair until the network card has sent it. virtio_net leaves the last ones
# in its ring when it is taken down, and lets go of them after all others have let go of the device: rxe
# gives up after 50 seconds, with a warning (Documentation/upstream-findings.md). Like this the driver
# lets go of a packet when it has it, from its next start on.
LET_GO = "echo 0 >/sys/module/virtio_net/parameters/napi_tx"
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


def take_away(kind, command):
    """Take the device away; how long that took."""
    begun = time.monotonic()
    command(KINDS[kind][0])
    # The device of a network device that goes is taken down by a worker.
    command(f"for n in $(seq 400); do [ -e /sys/class/infiniband/{RDMA}0 ] || exit 0; sleep 0.1; "
            "done; exit 1")
    return time.monotonic() - begun


def again_and_again(kinds, where, command):
    """Remove and add the device under load; returns how long removals took."""
    took = []
    for turn in range(TIMES * len(kinds)):
        kind = kinds[turn % len(kinds)]
        time.sleep(0.2 + random.random())
        unplug = where == "client" and kind == "rdma link delete" and turn % 5 == 4
        if unplug:
            link("down", "client")
        took.append(take_away(kind, command))
        time.sleep(random.random())
        command(KINDS[kind][1])
        if unplug:
            time.sleep(random.random() * 2)
            link("up", "client")
    return took


def unload(where, command):
    """The module can go soon after the last mount, or the last listener; how soon."""
    module = command("lsmod | grep -o '^rpcrdma[^ ]*'").strip()
    if where == "server":
        command("nfsd-down")
    begun = time.monotonic()
    command(f"for n in $(seq 200); do grep -qx 0 /sys/module/{module}/refcnt && exit; sleep 0.1; "
            "done; lsmod; rdma resource; exit 1")
    took = time.monotonic() - begun
    command(f"rmmod {module}")
    left = command("rdma resource show qp; rdma resource show mr; rdma resource show cm_id")
    command("load-transport")
    if where == "server":
        command("nfsd-up")
    equal([line for line in left.splitlines() if f"[{module}]" in line], [], "RDMA objects")
    return took


def removals(vers, where, kinds):
    command = on_server if where == "server" else lambda text: run("sh", "-c", text)
    with check(f"v{vers}, {where}, {TIMES} times under load: {', '.join(kinds)}",
               240 + 12 * TIMES * len(kinds)), mounted(vers) as at:
        loads = Loads(at)
        try:
            time.sleep(2)
            took = again_and_again(kinds, where, command)
            loads.alive()
            before = loads.rounds()
            begun = time.monotonic()
            wait_for(lambda: all(new > old + 1 for new, old in zip(loads.rounds(), before)),
                     120, f"both loads go on after {before} rounds")
            say(f"removals took {min(took):.1f} to {max(took):.1f} s, loads went on in "
                f"{time.monotonic() - begun:.1f} s, rounds {loads.rounds()}, "
                f"connections {xprt_stats(at)['connect_count']}")
            loads.end(120)
        finally:
            loads.kill()
        expect(max(took) < GONE * SLOWNESS, f"a removal took {max(took):.1f} s")
    with check(f"v{vers}, {where}: the module can go at once"):
        took = unload(where, command)
        say(f"not in use after {took:.1f} s")
        expect(took < UNLOAD * SLOWNESS, f"it took {took:.1f} s")


if NODES == 1:
    with check("two guests"):
        raise Skip("the device is the client's and the server's")
    done()
for command in (lambda text: run("sh", "-c", text), on_server):
    command(LET_GO)
    for step in KINDS["network device unregistered"]:
        command(step)
wanted = [kind for kind in KINDS if not sys.argv[2:] or sys.argv[2] in kind]
for vers, where in (("3", "client"), ("4.2", "server"),
                    *LONG * (("4.2", "client"), ("3", "server"))):
    # Once around is one check; many times are one for each kind.
    for kinds in ([wanted] if TIMES == 1 else [[kind] for kind in wanted]):
        removals(vers, where, kinds)
done()
