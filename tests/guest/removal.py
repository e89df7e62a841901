# SPDX-License-Identifier: GPL-2.0
"""RDMA devices that go while they are in use: it never takes long, and nothing is lost.

First each kind of removal many times in a row under one mount; then rounds in which all goes: mount, load,
removal, and the module is unloaded each time.

removal.py [TIMES [WORD [SIDE [VERSION]]]]: how often in a row each kind of removal, with LONG 50 times, else
once; so many rounds with unloads on each side, but two at least; only kinds with that word, or, with
`unload`, only those rounds; only at the `client`, or the `server`; and only with that version of NFS.
"""

import contextlib
import glob
import os
import random
import subprocess
import sys
import time

from leaving import *
from lib import *

TIMES = int(sys.argv[1]) if len(sys.argv) > 1 else 50 if LONG else 1
ROUNDS = max(TIMES, 2)
# In the rounds it is the module of one side that goes: ours.
OURS = [side for side, flavour in FLAVOURS.items() if flavour == "rust"]
SIZE = 8 << 20 if SLOWNESS == 1 else 2 << 20
# Within this time a device is gone, however busy it was.
GONE = 20


def settle(netdev):
    """Commands that give a network device the addresses and the RDMA device."""
    return f"""
case $ROLE in client) n=2 ;; *) n=1 ;; esac
ip link set {netdev} mtu 9000
ip addr add 10.0.0.$n/24 dev {netdev}
ip addr add fd00::$n/64 dev {netdev} nodad
ip link set {netdev} up
rdma link add {RDMA}0 type {RDMA} netdev {netdev}
"""


SETTLE = "for n in $(seq 200); do [ -e /sys/class/net/$NETDEV ] && break; sleep 0.1; done" + settle("$NETDEV")
# The RDMA device moves to a network device over the other one, with the same hardware address.
STACK = (f"rdma link delete {RDMA}0; ip addr flush dev $NETDEV; "
         "ip link add link $NETDEV name over0 type macvlan mode passthru" + settle("over0"))
# What takes the device away, what gives it back, and what has to be done before.
KINDS = {
    "rdma link delete": (f"rdma link delete {RDMA}0",
                         f"rdma link add {RDMA}0 type {RDMA} netdev $NETDEV", ""),
    "ip link delete": ("ip link delete over0", SETTLE, STACK),
    # The driver unregisters the network device, as for a card that is pulled.
    "network device unregistered": (
        "v=$(readlink -f /sys/class/net/$NETDEV/device); basename $v >/tmp/nic; "
        "cat /tmp/nic >/sys/bus/virtio/drivers/virtio_net/unbind",
        "cat /tmp/nic >/sys/bus/virtio/drivers/virtio_net/bind\n" + SETTLE, ""),
    # It comes back when that namespace ends.
    "network device moved to a namespace that ends": (
        "ip netns add away && ip link set $NETDEV netns away",
        "ip netns delete away\n" + SETTLE, ""),
}
# A packet of rxe keeps its queue pair until the network card has sent it. virtio_net leaves the last ones
# in its ring when it is taken down, and lets go of them after all others have let go of the device: rxe
# gives up after 50 seconds, with a warning (Documentation/upstream-findings.md). Like this the driver
# lets go of a packet when it has it, from its next start on.
LET_GO = "echo 0 >/sys/module/virtio_net/parameters/napi_tx"
# Writes a file and reads it back, again and again, by direct I/O or through the page cache; one number for
# each round.
LOAD = """
import mmap, os, sys
path, size, direct = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "direct"
rounds = 0
room = mmap.mmap(-1, 1 << 20)
while not os.path.exists("/tmp/enough"):
    rounds += 1
    fd = os.open(path, os.O_RDWR | os.O_CREAT | direct * os.O_DIRECT, 0o644)
    for at in range(0, size, 1 << 20):
        room[:] = (b"%08d" % (rounds * 1000 + (at >> 20))) * (1 << 17)
        if os.pwritev(fd, [room], at) != len(room):
            sys.exit("a write was short")
    os.fsync(fd)
    # What is read comes from the server.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for at in range(0, size, 1 << 20):
        if os.preadv(fd, [room], at) != len(room):
            sys.exit("a read was short")
        if room[:] != (b"%08d" % (rounds * 1000 + (at >> 20))) * (1 << 17):
            sys.exit(f"round {rounds}: what was read back at {at >> 20} MiB differs")
    os.close(fd)
    print(rounds, flush=True)
"""


class Loads:
    """Two jobs, one of them with direct I/O, that work on files of a mount until that is enough. The other one's
    fsync sleeps for as long as there is no server: who starts them has to be patient()."""

    def __init__(self, at):
        run("rm", "-f", "/tmp/enough")
        self.logs = [f"/tmp/load-{n}" for n in range(2)]
        self.jobs = []
        for n, (name, way) in enumerate(zip(self.logs, ("direct", "buffered"))):
            with open(name, "w") as log:
                self.jobs.append(subprocess.Popen(
                    [sys.executable, "-c", LOAD, f"{at}/load-{n}", str(SIZE), way],
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
        for job in self.jobs:
            job.wait(30 * SLOWNESS)


def take_away(kind, where, command):
    """Take the device away; how long that took."""
    # The device of a network device that goes is taken down by a worker.
    took = timed(command, f"({KINDS[kind][0]}) || exit; {AWAIT_GONE}")
    if takes_link(kind, where):
        link("down", where)
    return took


def give_back(kind, where, command):
    if takes_link(kind, where):
        link("up", where)
    command(KINDS[kind][1])


def takes_link(kind, where):
    """Whether the link goes with the device. A client's machine without a network device would take no packets for as
    long as NFS has something to give up, and so hold up those of the server, which its rxe waits for."""
    return where == "client" and kind.startswith("network device")


def goes_on(loads):
    """Each load has a whole round before it; after how many seconds?"""
    loads.alive()
    before = loads.rounds()
    begun = time.monotonic()
    wait_for(lambda: all(new > old + 1 for new, old in zip(loads.rounds(), before)),
             120, f"both loads go on after {before} rounds")
    return time.monotonic() - begun


def moves(loads, at):
    """The loads have a connection that answers, and are at work."""
    before = xprt_stats(at)["recvs"]
    wait_for(lambda: loads.alive() or xprt_stats(at)["recvs"] > before + 20, 120, "the loads are at work")


def again_and_again(kinds, where, command, loads, at):
    """Remove and add the device under load; returns how long removals took."""
    took = []
    for turn in range(TIMES * len(kinds)):
        kind = kinds[turn % len(kinds)]
        command(KINDS[kind][2] or ":")
        moves(loads, at)
        time.sleep(random.random())
        unplug = where == "client" and kind == "rdma link delete" and turn % 5 == 4
        if unplug:
            link("down", "client")
        took.append(take_away(kind, where, command))
        time.sleep(random.random())
        give_back(kind, where, command)
        if unplug:
            time.sleep(random.random() * 2)
            link("up", "client")
    return took


@contextlib.contextmanager
def as_before(vers):
    """What is in use on both sides after the body is what was before."""
    with mounted(vers) as at:
        os.listdir(at)
    # What was mounted goes on both sides in its own time.
    base = steady(lambda: {side: in_use(there) for side, there in SIDES.items()}, 3)
    say(f"in use: {base}")
    yield base
    still(base)


def still(base):
    for side, there in SIDES.items():
        wait_for(lambda: in_use(there) == base[side], 20, f"in use at the {side}: {base[side]}")


def removals(vers, where, kinds):
    command = SIDES[where]
    with check(f"v{vers}, {where}, {TIMES} times under load: {', '.join(kinds)}",
               240 + 40 * TIMES * len(kinds)), patient(150), as_before(vers), mounted(vers) as at:
        loads = Loads(at)
        try:
            time.sleep(2)
            took = again_and_again(kinds, where, command, loads, at)
            again = goes_on(loads)
            made = xprt_stats(at)["connect_count"]
            say(f"removals took {min(took):.1f} to {max(took):.1f} s, loads went on in "
                f"{again:.1f} s, rounds {loads.rounds()}, "
                f"connections {made}")
            loads.end(120)
        finally:
            loads.kill()
        expect(max(took) < GONE * SLOWNESS, f"a removal took {max(took):.1f} s")
        expect(made > len(took), f"{made} connections for {len(took)} removals: not each had one to end")
    with check(f"v{vers}, {where}: the module can go at once"):
        took = leave(where)
        come_back(where)
        say(f"gone after {took:.1f} s")
        expect(took < UNLOAD * SLOWNESS, f"it took {took:.1f} s")


def in_use(command):
    """The module's use count, and how many RDMA objects there are, on one side."""
    return command("cat /sys/module/rpcrdma*/refcnt; for kind in pd cq qp cm_id mr ctx srq; do "
                   "echo $kind $(rdma resource show $kind | wc -l); done").split()


def rpc_clients():
    """Clients of sunrpc on this machine that have a transport by RDMA."""
    return [name for name in glob.glob("/sys/kernel/sunrpc/rpc-clients/clnt-*")
            if glob.glob(f"{name}/switch/xprt-*-rdma")]


def back(kind, where, command, loads, vers):
    """The device is there again: work goes on, then the mount or the listener ends, and the module goes."""
    give_back(kind, where, command)
    goes_on(loads)
    if where == "server":
        # The mount stays, and its loads wait meanwhile.
        took = leave(where)
        come_back(where)
        goes_on(loads)
    loads.end(120)
    umount()
    if where == "client":
        took = leave(where)
        come_back(where)
    return took


def away(kind, where, command, loads, vers):
    """The mount or the listener ends and the module goes while there is no device."""
    if where == "client":
        expect(rpc_clients(), "no client of sunrpc while the mount is there")
        if vers == "3":
            # A hard mount: this is how one is given up. Else even a killed process would wait for what it has written.
            for path in glob.glob("/sys/fs/nfs/*/shutdown"):
                write(path, "1")
        loads.kill()
        expect(not any("differs" in read(name) for name in loads.logs), "what was read back differs")
        begun = time.monotonic()
        if vers == "3":
            # Without mount's helper, which would look for the server's mountd.
            run("umount", "-f", "-i", "/mnt/a", timeout=90)
        else:
            run("umount", "-f", "/mnt/a", timeout=90)
            # What NFS has under way times out, here, in the thread that manages the state of v4, or in the end
            # of its session: until then the mount has not gone.
            wait_for(lambda: not rpc_clients(), 120, "NFS has let go of its transports")
            say(f"NFS has given up after {time.monotonic() - begun:.0f} s")
    took = leave(where)
    if where == "client" and vers == "3":
        # From that on to the end of the module, as nothing is to be waited for.
        took = time.monotonic() - begun
    command("load-transport")
    give_back(kind, where, command)
    if where == "server":
        command("nfsd-up")
        goes_on(loads)
        loads.end(120)
        umount()
    return took


def round_of(number, vers, where, command, base):
    """Mount, work, take the device away under that, unload, and have all back; what took how long."""
    kind = wanted[number % len(wanted)]
    # Each kind both ways, in turn.
    way = (back, away)[(number + number // len(wanted) + (where == "client")) % 2]
    begun = time.monotonic()
    # Without a device the last calls of a hard mount of v4 would wait for one, with the transport, after the mount
    # has gone (row M21).
    soft = f"soft,timeo={50 if SLOWNESS == 1 else 100},retrans=1" \
        if where == "client" and way is away and vers != "3" else ""
    command(KINDS[kind][2] or ":")
    mount(vers, soft)
    loads = Loads("/mnt/a")
    try:
        time.sleep(1 + random.random())
        loads.alive()
        gone = take_away(kind, where, command)
        time.sleep(random.random())
        unused = way(kind, where, command, loads, vers)
    finally:
        loads.kill()
        subprocess.run(["umount", "-f", "-l", "/mnt/a"], stderr=subprocess.DEVNULL)
        # A round that failed is not to spoil what comes after it.
        if command(f"[ -e /sys/class/infiniband/{RDMA}0 ] || echo gone"):
            give_back(kind, where, command)
    say(f"round {number}, {kind}, {way.__name__}: the device was gone after {gone:.1f} s, the module after "
        f"{unused:.1f} s, all this took {time.monotonic() - begun:.0f} s")
    expect(gone < GONE * SLOWNESS, "the device took too long")
    expect(unused < UNLOAD * SLOWNESS, "the module took too long")
    with mounted(vers) as at:
        write_file(f"{at}/load-0", b"%d" % number, direct=True)
        equal(read_file(f"{at}/load-0", direct=True), b"%d" % number, "content")
    still(base)


def rounds(vers, where):
    with check(f"v{vers}, {where}: {ROUNDS} times removal under load, and unload", 120 + 150 * ROUNDS), \
            patient(150), as_before(vers) as base:
        for number in range(ROUNDS):
            round_of(number, vers, where, SIDES[where], base)


if NODES == 1:
    with check("two guests"):
        raise Skip("the device is the client's and the server's")
    done()
for command in SIDES.values():
    command(LET_GO)
    for step in KINDS["network device unregistered"][:2]:
        command(step)
word, side, only = (sys.argv[2:] + ["", "", ""])[:3]


def chosen(usual, more):
    """Versions of NFS and sides: the usual ones, with LONG all, or those of the command's last words."""
    return [(vers, where) for vers, where in usual + (LONG or bool(only)) * more
            if side in where and only in ("", vers)]


wanted = [kind for kind in KINDS if word in kind or word == "unload"]
for vers, where in chosen((("3", "client"), ("4.2", "server")), (("4.2", "client"), ("3", "server"))):
    # Once around is one check; many times are one for each kind.
    for kinds in ([] if word == "unload" else [wanted] if TIMES == 1 else [[kind] for kind in wanted]):
        removals(vers, where, kinds)
for vers, where in chosen((("4.2", "client"), ("3", "server")), (("3", "client"), ("4.2", "server"))):
    if where in OURS:
        rounds(vers, where)
done()
