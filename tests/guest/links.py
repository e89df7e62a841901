# SPDX-License-Identifier: GPL-2.0
"""Bad links, and servers that go away: how soon work goes on, and that nothing is lost.

Two processes write blocks, and take down when each was on the server for good. "Whole again" is the
time from the end of a disturbance until both have written more; "longest silence" is the longest time
in which one of them wrote nothing. Documentation/recovery.md has a table of what was measured.
"""

import contextlib
import json
import os
import random
import struct
import subprocess
import sys
import time

from lib import *
from proxy import Proxy

BLOCK, BLOCKS = 64 << 10, 256
MINE = MODULE == "rpcrdma_rust"
OWN, SILENT = "10.0.0.2", 20050


def content(number):
    """A block that tells its number, over and over."""
    return struct.pack(">Q", number) * (BLOCK // 8)


def work(path, journal, direct):
    """In the other process: block after block, into a file that is used again and again."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_DIRECT if direct else 0), 0o644)
    room, note = buffer(bytes(BLOCK)), os.open(journal, os.O_WRONLY | os.O_APPEND)
    number = 0
    while True:
        number += 1
        data = buffer(content(number)) if direct else content(number)
        equal(os.pwrite(fd, data, number % BLOCKS * BLOCK), BLOCK, "bytes written")
        os.fsync(fd)
        os.write(note, struct.pack("=Qd", number, time.monotonic()))
        back = number - random.randrange(min(number, BLOCKS))
        if not direct:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        equal(os.preadv(fd, [room], back % BLOCKS * BLOCK), BLOCK, "bytes read")
        if room != content(back):
            sys.exit(f"block {back} is {room[:16].hex()}")


class Worker:
    def __init__(self, at, direct):
        self.name = "direct" if direct else "buffered"
        self.journal = f"/tmp/journal.{self.name}"
        self.path = f"{at}/{self.name}"
        write(self.journal, "")
        self.process = subprocess.Popen(
            [sys.executable, __file__, self.path, self.journal, str(int(direct))],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def notes(self):
        """Numbers of blocks, and when they were there."""
        expect(self.process.poll() is None, f"the {self.name} worker ended: "
               + (self.process.stdout.read() if self.process.poll() is not None else ""))
        with open(self.journal, "rb") as f:
            return list(struct.iter_unpack("=Qd", f.read()))

    def more(self, since):
        """When the second block after that time was there, or None: one may have been under way."""
        later = [when for _, when in self.notes() if when > since]
        return later[1] if len(later) > 1 else None

    def silence(self, since, until):
        whens = [since, *(when for _, when in self.notes() if since < when < until), until]
        return max(b - a for a, b in zip(whens, whens[1:]))

    def end(self):
        """The worker is stopped; the blocks that it has taken down: {place: lowest number}."""
        alive = self.process.poll() is None
        self.process.kill()
        # What was read back last is looked at, too.
        self.words = ("" if alive else "it ended: ") + self.process.communicate(timeout=90)[0]
        with open(self.journal, "rb") as f:
            last = max(number for number, _ in struct.iter_unpack("=Qd", f.read()))
        return last


class Work:
    """Both workers, within `with`; what they have written is compared at the end, on the server."""

    def __init__(self, at, folder):
        self.at, self.folder, self.workers = at, folder, []

    def __enter__(self):
        self.workers = [Worker(self.at, direct) for direct in (True, False)]
        return self

    def __exit__(self, kind, *_):
        last = {each.name: each.end() for each in self.workers}
        if kind is None:
            equal({each.name: each.words for each in self.workers if each.words}, {}, "what workers said")
            for name, number in last.items():
                self.compare(name, number)

    def compare(self, name, last):
        """All that was acknowledged is on the server; beyond it, one block may be."""
        on_server("sync")
        text = on_server(f"cd /run/payload/tests/guest && python3 links.py numbers {self.folder}/{name}")
        found = list(map(int, text.split()))
        # Block n is at place n modulo BLOCKS: nothing was at the first place before all others were full.
        expect(len(found) >= min(last + 1, BLOCKS), f"{name}: {len(found)} blocks of {last} that were written")
        for place, number in enumerate(found):
            wanted = last - (last - place) % BLOCKS
            if wanted > 0:
                expect(number == wanted or number == last + 1 and (last + 1) % BLOCKS == place,
                       f"{name}: block {place} is number {number} instead of {wanted}")

    def goes_on(self, limit=60):
        """Both have written more; returns how long that took."""
        begun = time.monotonic()
        wait_for(lambda: all(each.more(begun) for each in self.workers), limit,
                 "the workers go on")
        return max(each.more(begun) for each in self.workers) - begun

    def through(self, name, disturb, limit=120, ends=False):
        """Disturb, and tell how long it took until all was well again. Does it end the connection?"""
        self.goes_on()
        before, begun = xprt_stats(self.at_mount())["connect_count"], time.monotonic()
        disturb()
        ended = time.monotonic()
        took = self.goes_on(limit)
        silence = max(each.silence(begun, ended + took) for each in self.workers)
        made = xprt_stats(self.at_mount())["connect_count"] - before
        say(f"RECOVERY {name}: disturbed for {ended - begun:.1f} s, whole again after {took:.1f} s, "
            f"longest silence {silence:.1f} s, connections {made}")
        expect(made or not ends, "the connection was never lost")
        return took

    def at_mount(self):
        return "/".join(self.at.split("/")[:3])


def numbers(path):
    """On the server: which numbers the blocks of a file have."""
    with open(path, "rb") as f:
        while data := f.read(BLOCK):
            number, = struct.unpack_from(">Q", data)
            print(number if data == content(number) else -1)


if sys.argv[1:2] == ["numbers"]:
    sys.exit(numbers(sys.argv[2]))
if sys.argv[1:]:
    sys.exit(work(sys.argv[1], sys.argv[2], sys.argv[3] == "1"))


# --- disturbances -------------------------------------------------------------------------------


@contextlib.contextmanager
def queues():
    """netem in both directions, without effect. To put it there under load, or take it away, makes
    the network device refuse packets; then rxe's queue pairs are in error, that for connecting too."""
    try:
        for do in (on_server, on_client):
            do("tc qdisc add dev $NETDEV root netem limit 10000")
        yield
    finally:
        for do in (on_server, on_client):
            do("tc qdisc delete dev $NETDEV root")


def lost_packets():
    """How many packets netem has dropped so far, in each direction."""
    return [json.loads(do("tc -s -j qdisc show dev $NETDEV root"))[0]["drops"] for do in (on_server, on_client)]


def disordered():
    """How many packets came out of order, as each end's device or its TCP tells."""
    if RDMA == "siw":
        command = "nstat -asz TcpExtTCPOFOQueue | awk '/^Tcp/ { print $2 }'"
    else:
        command = f"cd /sys/class/infiniband/{RDMA}0/ports/1/hw_counters && cat out_of_seq_request rcvd_seq_err"
    return sum(sum(map(int, do(command).split())) for do in (on_server, on_client))


def netem(what, seconds):
    """Both directions of the network are bad."""
    def disturb():
        before, order = lost_packets(), disordered()
        for do in (on_server, on_client):
            do(f"tc qdisc change dev $NETDEV root netem limit 10000 {what}")
        time.sleep(seconds)
        for do in (on_server, on_client):
            do("tc qdisc change dev $NETDEV root netem limit 10000")
        lost = [new - old for new, old in zip(lost_packets(), before)]
        say(f"packets lost by the server, and by the client: {lost}")
        expect(all(lost) or "loss" not in what, f"packets lost: {lost}")
        late = disordered() - order
        say(f"packets out of order: {late}")
        expect(late or "reorder" not in what, "no packet came out of order")
    return disturb


def stand_still(seconds):
    """The server's machine stops, and does not know afterwards."""
    def disturb():
        run("on-host", "stop server")
        time.sleep(seconds)
        run("on-host", "cont server")
    return disturb


def deaf(seconds):
    """The server's network swallows what the client sends."""
    ports = f"tcp dport {PORT}" if RDMA == "siw" else "udp dport 4791"

    def disturb():
        on_server("nft add table inet mute; nft add chain inet mute in '{ type filter hook input "
                  f"priority 0; }}'; nft add rule inet mute in {ports} counter drop")
        time.sleep(seconds)
        text = on_server("nft list table inet mute; nft delete table inet mute")
        say(text)
        expect(int(re.search(r"counter packets (\d+)", text)[1]), "nothing was swallowed")
    return disturb


def restart():
    """nfsd ends, and its module is loaded anew."""
    on_server("nfsd-down; m=$(lsmod | grep -o '^rpcrdma[^ ]*'); "
              "for n in $(seq 100); do rmmod $m && break; sleep 0.1; done; test ! -e /sys/module/$m; gone=$?; "
              "load-transport && nfsd-up && exit $gone")


# Name, what happens, how long until work goes on at most, and whether it is in the short form.
LIST = (
    ("loss 1 %", netem("loss 1%", 15), 60, False),
    ("loss 5 %", netem("loss 5%", 15), 90, True),
    ("reordering", netem("delay 4ms reorder 75%", 15), 60, True),
    ("link down for 2 s", unplug(2), 60, True),
    ("link down for 20 s", unplug(20), 60, False),
    ("server stands still for 2 s", stand_still(2), 60, False),
    ("server stands still for 20 s", stand_still(20), 60, True),
    ("server deaf for 20 s", deaf(20), 60, False),
    ("nfsd and module restart", restart, 90, False),
)

ONLY = os.environ.get("ONLY", "")
for vers in ("3", "4.2") if LONG else ("4.2",):
    for name, disturb, limit, short in LIST:
        if ONLY in name and (short or LONG):
            with check(f"v{vers}: {name}", 240), server_folder("links") as folder, queues(), \
                    mounted(vers) as at, Work(f"{at}/links", folder) as work:
                work.through(f"v{vers} {name}", disturb, limit, disturb is restart)


def boot(work):
    """The server's machine starts anew, as after a power failure: nobody has written anything back."""
    # Long after what `rebooted` has synced.
    begun = time.monotonic()
    wait_for(lambda: all(len([when for _, when in each.notes() if when > begun]) > 20 for each in work.workers), 120,
             "both have written and synced twenty blocks")
    run("on-host", "reset server")
    # An emulated machine may take minutes to boot beside others.
    wait_for(lambda: run("agent", "ping", timeout=150, ok=False)[0] == 0, 400, "the server is up")


def rebooted(vers):
    on_server("mountpoint -q /export/disk || { mkfs.ext4 -q /dev/vdd; mkdir -p /export/disk; "
              "mount /dev/vdd /export/disk; mkdir -m 777 /export/disk/links; exportfs -o "
              "rw,sync,no_root_squash,no_subtree_check,insecure,fsid=2 '*:/export/disk'; }")
    # Writes through the page cache may sleep as long as the machine boots.
    with patient(600), mounted(vers, export="/export/disk") as at:
        # The root has no journal; only what is written from now on is to show what a crash does to it.
        on_server("sync -f /; mkdir -p /export/disk/.clients; "
                  "cp /var/lib/nfs/nfsdcld/* /export/disk/.clients; sync -f /export/disk/.clients/*")
        with Work(f"{at}/links", "/export/disk/links") as work:
            work.through(f"v{vers} server reboots", lambda: boot(work), 150, True)


for vers in ("3", "4.2") if LONG else ("4.2",):
    if ONLY in "reboot":
        with check(f"v{vers}: the server's machine starts anew", 700):
            rebooted(vers)


def says_nothing(vers):
    """A server that takes connections and calls, and does not answer for 20 s."""
    def silent():
        proxy.holding = True
        time.sleep(20)
        proxy.holding = False

    proxy = Proxy(OWN, SILENT, SERVER, f"{RDMA}0")
    try:
        text = f"vers={vers},proto=rdma,port={SILENT},timeo=50"
        if vers == "3":
            text += f",nolock,mountproto=tcp,mountaddr={SERVER}"
        with server_folder("links") as folder, mounted(vers, opts=text, server=OWN) as at, \
                Work(f"{at}/links", folder) as work:
            work.through(f"v{vers} server says nothing for 20 s", silent, 60)
    finally:
        proxy.end()


for vers in ("3", "4.2"):
    if ONLY in "silent":
        with check(f"v{vers}: a server that says nothing for 20 s", 200):
            says_nothing(vers)
done()
