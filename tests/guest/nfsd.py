# SPDX-License-Identifier: GPL-2.0
"""The server changes while clients are at work: threads, stop and start, listeners, the device."""

import contextlib
import os
import re
import subprocess
import time

from disk import frozen_disk
from events import *
from lib import *
from load import Load


@contextlib.contextmanager
def busy(*versions, extra=""):
    """Mounts of these versions with a load on each: a list of the loads."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(server_folder("busy"))
        loads = []
        for vers in versions:
            at = stack.enter_context(mounted(vers, extra, at=f"/mnt/v{vers}"))
            # Not the page cache with v4.0: when delegations go back after a restart, nfsd tells such
            # clients that the file is empty (over TCP too), and reads end there for a moment.
            direct = vers in ("4.0", "4.1")
            loads.append(stack.enter_context(Load(f"{at}/busy", f"v{vers}", direct)))
        # (Four mounts share one processor, which is emulated.)
        all_go_on(loads, 120)
        yield loads


def all_go_on(loads, seconds):
    for load in loads:
        load.goes_on(seconds)


def threads(count):
    on_server(f"echo {count} >/proc/fs/nfsd/threads")
    equal(int(on_server("cat /proc/fs/nfsd/threads")), count, "threads")


for count in (1, 64):
    with check(f"{count} nfsd threads, all versions", 600):
        try:
            # The number changes while they work, and is there from the beginning.
            with busy("3", "4.2") as loads:
                threads(count)
                all_go_on(loads, 120)
            with busy(*VERSIONS) as loads:
                all_go_on(loads, 120)
        finally:
            threads(8)

with check("nfsd stops and starts, clients of all versions recover", 600), patient(150), busy(*VERSIONS) as loads:
    # Writers to the page cache wait for a restart of nfsd, its grace, and the client's pauses.
    for pause in (0, 5):
        on_server("nfsd-down")
        time.sleep(pause)
        on_server("nfsd-up")
        all_go_on(loads, 120)

with check("the RDMA listener is away for a while", 600), patient(150), busy(*VERSIONS) as loads:
    on_server("nfsd-down; nfsd-up tcp-only")
    expect("rdma" not in on_server("cat /proc/fs/nfsd/portlist"), "the server listens on RDMA")
    time.sleep(5)
    on_server(f"echo rdma {PORT} >/proc/fs/nfsd/portlist")
    all_go_on(loads, 120)

with check("a listener bound to a link-local address, which has a scope", 300):
    address = re.search(r"inet6 (fe80:[0-9a-f:]+)/", on_server("ip -6 -o addr show dev $NETDEV scope link")).group(1)
    on_server("nfsd-down; nfsdctl listener +tcp:0.0.0.0:2049 "
              f"+rdma:[{address}%$NETDEV]:{PORT} && nfsdctl threads 8")
    try:
        say(on_server("cat /proc/fs/nfsd/portlist; rdma resource show cm_id"))
        words = options("4.2").replace("proto=rdma", "proto=rdma6")
        with mounted("4.2", opts=words, server=f"{address}%{NETDEV}") as at:
            write_file(f"{at}/scoped", b"scoped")
            equal(on_server(f"cat {EXPORT}/scoped; rm {EXPORT}/scoped"), "scoped", "content")
        status, text = run("mount", "-t", "nfs", "-o", options("4.2") + ",retry=0", f"{SERVER}:{EXPORT}", "/mnt",
                           ok=False, timeout=90)
        expect(status, "it takes connections to another address")
    finally:
        on_server("nfsd-down; nfsd-up")

with check("listeners bound to one address each", 300):
    bound = f"+rdma:{SERVER}:{PORT} +rdma:[{SERVER6}]:{PORT}"
    on_server(f"nfsd-down; nfsdctl listener +tcp:0.0.0.0:2049 {bound} && nfsdctl threads 8")
    try:
        say(on_server("cat /proc/fs/nfsd/portlist"))
        with busy("3", "4.2") as loads:
            all_go_on(loads, 60)
        with mounted("4.2", opts=options("4.2").replace("rdma", "rdma6"), server=SERVER6) as at:
            os.listdir(at)
    finally:
        on_server("nfsd-down; nfsd-up")

DELETE = f"rdma link delete {RDMA}0"
ADD = f"rdma link add {RDMA}0 type {RDMA} netdev $NETDEV"


@contextlib.contextmanager
def told(*wanted):
    """The server's module says in the body what these patterns match."""
    mark = mark_log(on_server)
    yield
    said = "\n".join(log(on_server, mark))
    for pattern in wanted if FLAVOURS["server"] == "rust" else ():
        expect(re.search(pattern, said), f"no {pattern!r} in {said}")


with check("the server's RDMA device is removed and comes back", 300):
    if NODES == 1:
        raise Skip("in one guest it is the client's as well")
    removed = f"device {RDMA}0 is being removed, [1-9][0-9]* connections have to let go of it"
    with busy("3", "4.2") as loads, told(removed):
        on_server(DELETE)
        time.sleep(3)
        on_server(ADD)
        all_go_on(loads, 120)


@contextlib.contextmanager
def no_free_thread(how):
    """All threads of nfsd have calls that wait for a file system, and more are in line, by a mount with these options.
    In the body the server's RDMA device can go."""
    before = int(on_server("cat /proc/fs/nfsd/threads"))
    with frozen_disk() as disk:
        os.makedirs("/mnt/slow", exist_ok=True)
        run("mount", "-t", "nfs", "-o", f"vers=3,nolock,{how}", f"{SERVER}:{disk}", "/mnt/slow")
        jobs = []
        try:
            # Each in its own: the client creates one file at a time in a directory.
            places = [f"/mnt/slow/{n}" for n in range(6)]
            for place in places:
                os.mkdir(place)
            try:
                on_server(f"echo 2 >/proc/fs/nfsd/threads; fsfreeze -f {disk}")
                jobs += [subprocess.Popen(["touch", f"{place}/file"]) for place in places]
                wait_for(lambda: on_server("ps -C nfsd -o stat=").split() in (["D"] * 2, ["D<"] * 2), 30,
                         "both threads wait for the file system")
                yield
                expect(all(job.poll() is None for job in jobs), "a call was answered")
            finally:
                on_server(f"fsfreeze -u {disk}; echo {before} >/proc/fs/nfsd/threads; "
                          f"rdma link show {RDMA}0/1 >/dev/null 2>&1 || {{ {AWAIT_GONE}; {ADD}; }}")
                ends = [job.wait(60 * SLOWNESS) for job in jobs]
            equal(ends, [0] * len(places), "how the writers ended")
        finally:
            run("umount", "/mnt/slow")


def lose_device():
    on_server(f"({DELETE}) >/dev/null 2>&1 &")
    begun = time.monotonic()
    on_server(AWAIT_GONE)
    say(f"after {time.monotonic() - begun:.1f} s")


with check("no thread of nfsd answers for 20 s: v4.2 goes on, by the same connection or another one", 200):
    with busy("4.2") as loads:
        with no_free_thread("proto=tcp"):
            time.sleep(20)
        all_go_on(loads, 60)

# The calls are of another connection, or of that which is to end.
for transport, how in (("TCP", "proto=tcp"), ("RDMA", f"proto=rdma,port={PORT}")):
    with check(f"the server's RDMA device goes while all threads of nfsd have calls by {transport}", 200):
        if NODES == 1:
            raise Skip("in one guest it is the client's as well")
        if transport == "RDMA":
            unlike("server", "the C transport waits for a thread of nfsd")
        with mounted("3"):
            with no_free_thread(how):
                lose_device()
            os.listdir("/mnt/a")

with check("a connection ends while nfsd has a call of it: what the device has goes without waiting for that", 200):
    if NODES == 1:
        raise Skip("in one guest it is the client's as well")
    unlike("server", "the C transport keeps its queue pair until the last call has ended")
    with frozen_disk() as disk:
        def queue_pairs():
            return int(on_server("rdma resource show qp | grep -c 'type RC'; true"))
        wait_for(lambda: queue_pairs() == 0, 20, "no connection is left")
        os.makedirs("/mnt/slow", exist_ok=True)
        run("mount", "-t", "nfs", "-o", f"vers=3,nolock,proto=rdma,port={PORT}", f"{SERVER}:{disk}", "/mnt/slow")
        try:
            equal(queue_pairs(), 1, "queue pairs with the mount")
            on_server(f"fsfreeze -f {disk}")
            try:
                job = subprocess.Popen(["touch", "/mnt/slow/file"])
                wait_for(lambda: "D" in on_server("ps -C nfsd -o stat="), 30, "a thread waits for the file system")
                job.kill()
                job.wait(60 * SLOWNESS)
                run("umount", "/mnt/slow")
                wait_for(lambda: queue_pairs() == 0, 20, "the queue pair is gone")
                expect("D" in on_server("ps -C nfsd -o stat="), "the call has ended before")
            finally:
                on_server(f"fsfreeze -u {disk}")
        finally:
            if os.path.ismount("/mnt/slow"):
                run("umount", "/mnt/slow")
        wait_for(lambda: "D" not in on_server("ps -C nfsd -o stat="), 30, "the call has ended")
    with mounted("3"):
        os.listdir("/mnt/a")

with check("a callback that has no connection, and no thread of nfsd that notices: it is tried now and then", 200):
    if NODES == 1:
        raise Skip("in one guest it is the client's as well")
    unlike("server", "the C transport closes an idle one without a thread")
    with server_folder("called") as folder, mounted("4.2") as at:
        can_be_called("10.0.0.2")
        on_server(f"printf first >{folder}/f")
        with open(f"{at}/called/f") as file:
            equal(file.read(), "first", "content")
            wait_for(lambda: "type: deleg" in on_server("cat /proc/fs/nfsd/clients/*/states"), 10, "a delegation")
            with no_free_thread("proto=tcp"):
                lose_device()
                with traced(on_server, "sunrpc/xprt_transmit") as events:
                    # The open waits for the delegation. (It does not come back, and the open is given up.)
                    on_server(f"timeout 5 sh -c 'echo second >{folder}/f'; true")
                tries = len(of(events, "xprt_transmit"))
                say(f"{tries} times in 5 s")
                expect(0 < tries < 50, f"{tries} times in 5 s")
        equal(read(f"{at}/called/f"), "first", "content afterwards")


def one_listener():
    """nfsd listens to one address only: that of the RDMA device."""
    on_server(f"nfsd-down; nfsdctl listener +tcp:0.0.0.0:2049 +rdma:{SERVER}:{PORT} && nfsdctl threads 8")


with check("a listener bound to one address: its device is removed and comes back", 400):
    if NODES == 1:
        raise Skip("in one guest it is the client's as well")
    unlike("server", "a listener of the C transport does not let go of its device")
    one_listener()
    try:
        listener = re.escape(f"listener {SERVER}:{PORT} ")
        with busy("3", "4.2") as loads, told(listener + "is away until its address and device are back: .",
                                             listener + "is back"):
            for pause in (0, 5):
                on_server(DELETE)
                time.sleep(pause)
                on_server(ADD)
                all_go_on(loads, 120)
        with mounted("4.1") as at:
            os.listdir(at)
    finally:
        on_server("nfsd-down; nfsd-up")

with check("a listener that waits for its device is closed: at once and for good", 200):
    if NODES == 1:
        raise Skip("as above")
    unlike("server", "as above")
    one_listener()
    try:
        on_server(DELETE)
        begun = time.monotonic()
        on_server("nfsd-down")
        took = time.monotonic() - begun
        expect(took < 10 * SLOWNESS, f"it took {took:.1f} s")
        on_server(ADD)
        time.sleep(2.5)
        lines = on_server("rdma resource show cm_id").splitlines()
        equal([line for line in lines if f":{PORT}" in line], [], "listeners")
        # Nothing of it is left to run in a module that is gone.
        one_listener()
        on_server(DELETE + "; nfsd-down; rmmod $MODULE")
        time.sleep(2.5)
        on_server(ADD + "; load-transport")
    finally:
        on_server("nfsd-down; nfsd-up")
    with mounted("4.2") as at:
        os.listdir(at)
done()
