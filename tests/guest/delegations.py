# SPDX-License-Identifier: GPL-2.0
"""Delegations: granted, and recalled by the opens of another client, while the connection is busy.

The other client is the server guest itself, which mounts its own export by RDMA.
"""

import contextlib
import glob
import os
import time

from events import *
from lib import *
from load import Load

# So many that it does not matter if the server takes some for others that were recalled before: it
# remembers these by three bits of 256 each, and delegates them not again for a minute.
FILES, FEWER = 12, 8
US, OTHER = "10.0.0.2", "10.0.0.1"
SWITCHES = "/sys/kernel/sunrpc/xprt-switches"
# As the other client: open and read, or write, every file of a directory; how long did one take?
PEER = """
import os, sys, time
folder, flags, text = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
slow = 0
for name in sorted(os.listdir(folder)):
    begun = time.monotonic()
    fd = os.open(folder + "/" + name, flags)
    if flags == os.O_RDONLY:
        got = os.read(fd, 100)
        assert got == text, (name, got)
    else:
        os.write(fd, text)
    os.close(fd)
    slow = max(slow, time.monotonic() - begun)
print(slow)
"""
# As the other client: have all files of a directory open.
HOLDER = """
import os, sys, time
fds = [os.open(sys.argv[1] + "/" + name, os.O_RDONLY) for name in os.listdir(sys.argv[1])]
time.sleep(300)
"""


def delegations(address, folder):
    """How many delegations in this folder the server says that the client with this address has."""
    # It shows the last two parts of a name. Clients come and go meanwhile.
    name = os.path.basename(folder)
    return int(on_server(f"""
        for c in /proc/fs/nfsd/clients/*; do
            grep -q 'address: "{address}:' $c/info && cat $c/states
        done 2>/dev/null | grep -c 'type: deleg.*["/]{name}/f'; true"""))


def granted(address, folder, count=FILES):
    got = delegations(address, folder)
    say(f"{got} of {count} delegated")
    if got <= count // 2:
        say(on_server("tail -n 99 /proc/fs/nfsd/clients/*/info /proc/fs/nfsd/clients/*/states; true"))
        raise Failed("few delegations were granted")


def came_back(address, folder):
    wait_for(lambda: delegations(address, folder) == 0, 10, "all delegations came back")


def soon(seconds):
    say(f"the slowest open took {seconds:.2f} s")
    # The lease is 30 s: an open that waits for its end was not helped by a recall.
    expect(seconds < min(15 * SLOWNESS, 25), "opens wait too long for delegations to come back")


def peer(folder, flags, text):
    soon(float(on_server(f"python3 -c '{PEER}' /mnt/other/{folder} {int(flags)} {text}")))


@contextlib.contextmanager
def files(folder, count=FILES):
    """Files that nobody had open before: the server is slow to delegate those again."""
    path = f"{EXPORT}/{folder}"
    on_server(f"mkdir -m 777 {path}; cd {path}; for n in $(seq {count}); do "
              "printf first >f$n; chmod 666 f$n; done")
    try:
        yield path
    finally:
        on_server(f"rm -r {path}")


@contextlib.contextmanager
def held(folder, flags):
    """All files of a directory, open."""
    fds = [os.open(f"{folder}/{name}", flags) for name in sorted(os.listdir(folder))]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def tests(vers, at, load):
    with check(f"v{vers}: read delegations, recalled by another client that writes"):
        can_be_called(US)
        with files("d/r"), held(f"{at}/d/r", os.O_RDONLY) as fds:
            for fd in fds:
                equal(os.read(fd, 100), b"first", "content")
            granted(US, "d/r")
            peer("d/r", os.O_WRONLY, "second")
            came_back(US, "d/r")
            for name in os.listdir(f"{at}/d/r"):
                equal(read(f"{at}/d/r/{name}"), "second", "content afterwards")
        load.goes_on(60)
    with check(f"v{vers}: write delegations, recalled by another client that reads"), \
            files("d/w"), held(f"{at}/d/w", os.O_RDWR) as fds:
        granted(US, "d/w")
        for fd in fds:
            os.pwrite(fd, b"cache", 0)
        peer("d/w", os.O_RDONLY, "cache")
        came_back(US, "d/w")
        load.goes_on(60)
    # Longer than all that it waits for can take: else slowness looks like a hang.
    with check(f"v{vers}: delegations of another client, recalled when we write", 300), \
            files("d/o", FEWER):
        can_be_called(OTHER)
        holder = on_server(f"nohup python3 -c '{HOLDER}' /mnt/other/d/o >/dev/null 2>&1 & echo $!").strip()
        try:
            wait_for(lambda: int(on_server(f"ls -l /proc/{holder}/fd | grep -c /d/o/; true")) == FEWER,
                     30, "the other client has all files open")
            granted(OTHER, "d/o", FEWER)
            slow = 0
            for name in sorted(os.listdir(f"{at}/d/o")):
                begun = time.monotonic()
                write(f"{at}/d/o/{name}", "second")
                slow = max(slow, time.monotonic() - begun)
            soon(slow)
            came_back(OTHER, "d/o")
        finally:
            on_server(f"kill {holder}")
        load.goes_on(60)


def recalled(folder, at):
    """Read delegations are recalled: the server's calls reach us."""
    can_be_called(US)
    with files(folder, FEWER), held(f"{at}/{folder}", os.O_RDONLY):
        granted(US, folder, FEWER)
        peer(folder, os.O_WRONLY, "second")
        came_back(US, folder)


def expire():
    """nfsd forgets us: we have to begin anew."""
    on_server(f"""for c in /proc/fs/nfsd/clients/*; do
        grep -q 'address: "{US}:' $c/info && echo expire >$c/ctl; done; true""")


def again(vers, at, load):
    """Recalls after the connection, and after the session, are others."""
    events = traced(run) if os.environ["CLIENT"] == "rust" else contextlib.nullcontext()
    with check(f"v{vers}: recalls on another connection than the session was made on", 200):
        before = xprt_stats(at)["connect_count"]
        for path in glob.glob("/sys/kernel/sunrpc/xprt-switches/*/xprt-*-rdma/dstaddr"):
            if read(path).strip() == SERVER:
                write(path, SERVER + "\n")
        load.goes_on(60)
        equal(xprt_stats(at)["connect_count"] - before, 1, "new connections")
        recalled("d/c", at)
        load.goes_on(60)
    with check(f"v{vers}: recalls with another session on the same connection", 200):
        with events as seen:
            before = xprt_stats(at)["connect_count"]
            expire()
            load.goes_on(60)
            recalled("d/s", at)
            load.goes_on(60)
            equal(xprt_stats(at)["connect_count"] - before, 0, "new connections")
        if seen is not None:
            calls = xids(of(seen, "xprtrdma_cb_call"))
            expect(calls, "no xprtrdma_cb_call")
            equal(xids(of(seen, "xprtrdma_cb_reply")), calls, "XIDs of callbacks and their replies")


def anew():
    """A client begins anew on its connection, by which it was not called yet."""
    trace = "/sys/kernel/tracing"
    with check("a client that comes again by a connection without a callback can be called"), mounted("4.2") as at:
        can_be_called(US)
        on_server(f"mountpoint -q {trace} || mount -t tracefs none {trace}; cd {trace}; echo >trace; "
                  "for e in setup setup_err; do echo 1 >events/nfsd/nfsd_cb_$e/enable; done")
        try:
            expire()
            os.listdir(at)
            can_be_called(US)
        finally:
            said = on_server(f"cd {trace}; cat trace; for e in setup setup_err; do "
                             "echo 0 >events/nfsd/nfsd_cb_$e/enable; done")
        expect("nfsd_cb_setup: " in said, "nfsd has not made its way to call the client")
        expect("nfsd_cb_setup_err: " not in said, f"nfsd has failed to: {said[-500:]}")


def transport():
    """What the server has to call a client with."""
    def shown():
        """Transports of the server's machine as a client, and references to its module."""
        return [int(n) for n in on_server(f"ls -d {SWITCHES}/*/xprt-* | wc -l; "
                                          "cat /sys/module/rpcrdma_rust/refcnt").split()]

    with check("the transport for callbacks has a class, keeps the module, and goes with its connection"):
        unlike("server", "the C module's has no class: its kernel would follow NULL", deadly=True)
        # When what was mounted before has gone.
        before = steady(shown, 4)
        with mounted("3"):
            without = shown()
        wait_for(lambda: shown() == before, 30, f"transports and references are {before} again")
        for _ in range(2):
            with mounted("4.1"):
                can_be_called(US)
                equal(shown(), [without[0] + 1, without[1] + 1], "transports and references")
                new, = on_server(f"grep -l '{US}$' {SWITCHES}/*/xprt-*/dstaddr; true").split()
                for path in (new, os.path.dirname(os.path.dirname(new)) + "/add_xprt"):
                    status, text = run("on-server", f"/bin/echo {US} >{path}", ok=False)
                    expect(status and "not supported" in text, f"{path}: {text}")
            wait_for(lambda: shown() == before, 30, f"transports and references are {before} again")


def numbers():
    """What the server's transport for callbacks tells sunrpc of itself (row B13)."""
    with check("callbacks have two slots, and a minute each"):
        with server_folder("d"), mounted("4.1") as at, other_client("4.1"), \
                probes(on_server, "f:probe_xprt xprt_reserve_xprt_cong slots=xprt->max_reqs "
                       "first=xprt->timeout->to_initval most=xprt->timeout->to_maxval "
                       "kind=xprt->xprt_class->ident:x32",
                       "f:probe_reply xprt_complete_rqst pin=task->tk_rqstp->rq_pin.counter "
                       "kind=task->tk_xprt->xprt_class->ident:x32") as events:
            recalled("d/n", at)
        told = {text.partition("slots=")[2] for text in of(events, "probe_xprt") if "kind=0x80000100" in text}
        equal(told, {f"2 first={60 * HZ} most={60 * HZ} kind=0x80000100"}, "slots and times")
        # From then on sunrpc takes no lock to let go of a request that ends by itself: only a pin keeps it.
        pins = [number(text, "pin") for text in of(events, "probe_reply") if "kind=0x80000100" in text]
        expect(pins and min(pins) > 0, f"pins of requests whose replies are there: {pins}")


def small():
    """A session asks for callbacks that fit into the connection's messages."""
    with check("callbacks of a session are no longer than the messages of its connection"):
        unlike("client", "the C client does not look")
        paths = [f"/proc/sys/sunrpc/rdma_max_inline_{way}" for way in ("read", "write")]
        old = [read(path) for path in paths]
        try:
            for path in paths:
                write(path, "1024")
            with server_folder("d"), probes(run, "f:probe_room rpc_max_bc_payload%return size=$retval") as seen, \
                    mounted("4.1") as at, other_client("4.1"):
                recalled("d/l", at)
        finally:
            for path, value in zip(paths, old):
                write(path, value)
        equal({number(text, "size") for text in of(seen, "probe_room")}, {1024 - 28}, "room for callbacks")


@contextlib.contextmanager
def other_client(vers):
    on_server(f"mkdir -p /mnt/other; mount -t nfs -o {options(vers)} {SERVER}:{EXPORT} /mnt/other")
    try:
        yield
    finally:
        on_server("umount -f -l /mnt/other")


if NODES == 1:
    with check("delegations"):
        raise Skip("there is no second client in one guest")
else:
    for vers in ("4.1", "4.2"):
        with server_folder("d"), mounted(vers) as at, Load(f"{at}/d") as load:
            load.goes_on(60)
            with other_client(vers):
                tests(vers, at, load)
                # Sessions are the same in both versions.
                if vers == "4.1" or LONG:
                    again(vers, at, load)
    anew()
    transport()
    numbers()
    small()
done()
