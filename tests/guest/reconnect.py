# SPDX-License-Identifier: GPL-2.0
"""What a client takes along from a connection to the next one, and how often it tries to make one.

Rows X22 and X23. The server stops and starts its threads, so that connections end and are refused.
"""

import concurrent.futures
import subprocess

from events import *
from lib import *

DATA = random_bytes(1 << 20)
MAX_REQ_SIZE = "/proc/sys/sunrpc/svc_rdma/max_req_size"
READ, WRITE = (f"/proc/sys/sunrpc/rdma_max_inline_{way}" for way in ("read", "write"))


def ours(kind):
    """Numbers of our objects of that kind that `rdma resource` shows."""
    name = {"pd": "pdn", "mr": "mrn"}[kind]
    return {int(re.search(rf"\b{name} (\d+)", line).group(1)) for line in rdma_objects(kind)
            if f"[{MODULE}]" in line}


def connected():
    return [t for t in transports() if " CONNECTED" in " " + read(t + "/xprt_state").replace("=", " ")]


def copied(at, name):
    """A file written and read back; nothing of it comes from memory."""
    write_file(f"{at}/reconnect/{name}", DATA, direct=True)
    expect(read_file(f"{at}/reconnect/{name}", direct=True) == DATA, "what was read back differs")


# Receive and send buffers of a connection with 128 slots (Documentation/architecture.md).
RINGS = [192, 166]


def buffers(events, size):
    """How many blocks of so many bytes were allocated."""
    return len([t for t in of(events, "probe_buffer") if number(t, "old") == 0 and number(t, "size") == size])


@contextlib.contextmanager
def server_away():
    on_server("nfsd-down")
    try:
        yield
    finally:
        on_server("nfsd-up")


with server_folder("reconnect"):
    with check("the next connection has the regions, buffers and protection domain of the last", 200), \
            mounted("3", "noac") as at:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: copied(at, f"before{n}"), range(16)))
        domain, regions = ours("pd"), ours("mr")
        expect(len(domain) == 1 and len(regions) > 4, f"{domain} {regions}")
        with traced(run) as events:
            with server_away():
                wait_for(lambda: not connected(), 20, "the connection is gone")
                equal(ours("pd"), domain, "protection domain while there is no connection")
            copied(at, "after")
        expect([t for t in of(events, "xprtrdma_connect") if "rc=0 " in t], "no connection was made")
        equal(ours("pd"), domain, "protection domain")
        # Not the one for padding, and what was in use when the connection went.
        kept = ours("mr") & regions
        say(f"{len(regions)} regions, {len(kept)} of them kept")
        expect(len(kept) >= len(regions) - 4, f"regions {sorted(regions)}, now {sorted(ours('mr'))}")
        equal(of(events, "xprtrdma_createmrs"), [], "regions made")

    with check("twenty connections in a row: none has its message buffers made anew", 400):
        # A size that nothing else has, so that these are seen among all that is allocated; and so many
        # that the mount alone, which has to make them, shows that they are.
        sizes = {"rdma_max_inline_read": 3072, "rdma_max_inline_write": 2048}
        before = {name: read(f"/proc/sys/sunrpc/{name}") for name in sizes}
        probe = "p:probe_buffer krealloc_node_align_noprof old=%di:u64 size=%si:u64"
        try:
            for name, size in sizes.items():
                write(f"/proc/sys/sunrpc/{name}", f"{size}\n")
            with contextlib.ExitStack() as stack:
                with probes(run, probe) as events:
                    at = stack.enter_context(mounted("3", "noac"))
                    copied(at, "first")
                equal([buffers(events, size) for size in sizes.values()], RINGS,
                      "buffers of the first connection, to receive into and to send from")
                with probes(run, probe) as events:
                    for turn in range(20):
                        with server_away():
                            wait_for(lambda: not connected(), 20, "the connection is gone")
                        copied(at, "again")
                made = [t for t in of(events, "xprtrdma_inline_thresh")]
                equal(len(made), 20, "connections")
                expect(all("neg send/recv=2048/3072," in t for t in made), made[0])
                equal([buffers(events, size) for size in sizes.values()], [0, 0],
                      "buffers made for the 20 connections that followed")
        finally:
            for name, value in before.items():
                write(f"/proc/sys/sunrpc/{name}", value)

    for path, way, pattern in ((READ, "from", r"neg send/recv=\d+/{}\b"), (WRITE, "to", r"neg send/recv={}/\d+\b")):
        with check(f"buffers have the size of the new connection's messages {way} the server", 300):
            default, theirs = read(path), on_server(f"cat {MAX_REQ_SIZE}")
            on_server(f"echo 16384 >{MAX_REQ_SIZE}")
            try:
                # From small to large and back: messages that fill what has been negotiated need larger buffers.
                write(path, "2048\n")
                with mounted("3", "noac") as at:
                    copied(at, "sizes")
                    domain = ours("pd")
                    for size in (4096, 16384, 2048, 65536, 1024):
                        write(path, f"{size}\n")
                        with traced(run) as events:
                            with server_away():
                                pass
                            copied(at, f"sizes{size}")
                            # Messages that fill what there is: with the data where they fit, and where they do not.
                            for length in (800, 1800, 3800, 15000):
                                write_file(f"{at}/reconnect/filled", DATA[:length], direct=True)
                                equal(read_file(f"{at}/reconnect/filled", direct=True, block=length), DATA[:length],
                                      f"a file of {length} bytes")
                        made = of(events, "xprtrdma_inline_thresh")
                        equal(len(made), 1, "connections")
                        expect(re.search(pattern.format(min(size, 16384)), made[0]), f"{size}: {made[0]}")
                        equal(ours("pd"), domain, "protection domain")
            finally:
                write(path, default)
                on_server(f"echo {theirs.strip()} >{MAX_REQ_SIZE}")

    with check("the device goes while there is no connection", 200), mounted("3", "noac") as at:
        copied(at, "device")
        with server_away():
            wait_for(lambda: not connected(), 20, "the connection is gone")
            expect(ours("pd"), "nothing was kept")
            begun = time.monotonic()
            run("rdma", "link", "delete", f"{RDMA}0")
            expect(time.monotonic() - begun < 5 * SLOWNESS, "the removal took long")
            run("rdma", "link", "add", f"{RDMA}0", "type", RDMA, "netdev", NETDEV)
            equal(ours("pd"), set(), "protection domains")
        copied(at, "device")

    with check("the device goes while a connection is made, three times", 400), mounted("3", "noac") as at:
        copied(at, "early")
        with server_away():
            wait_for(lambda: not connected(), 20, "the connection is gone")
            # Nobody answers, to whom the way is known: an attempt takes a while.
            way = re.search(r"lladdr \S+", run("ip", "neigh", "show", "to", SERVER, "dev", NETDEV)).group()
            run("ip", "neigh", "replace", SERVER, *way.split(), "dev", NETDEV, "nud", "permanent")
            on_server(f"tc qdisc add dev {NETDEV} root netem loss 100%")
            waits = subprocess.Popen(["stat", f"{at}/reconnect/early"], stdout=subprocess.DEVNULL)
            try:
                for _ in range(3):
                    wait_for(lambda: [line for line in rdma_objects("cm_id") if f"[{MODULE}]" in line
                                      and "state CONNECT" in line], 60, "a connection is being made")
                    expect(not connected(), "there is one")
                    begun = time.monotonic()
                    run("rdma", "link", "delete", f"{RDMA}0")
                    expect(time.monotonic() - begun < 5 * SLOWNESS, "the removal took long")
                    run("rdma", "link", "add", f"{RDMA}0", "type", RDMA, "netdev", NETDEV)
            finally:
                on_server(f"tc qdisc delete dev {NETDEV} root")
                run("ip", "neigh", "delete", SERVER, "dev", NETDEV)
                mend()
        equal(waits.wait(90 * SLOWNESS), 0, "what waited")
        copied(at, "early")

    if LONG:
        with check("nothing is kept for a connection that nobody has wanted for five minutes", 500), \
                mounted("3", "noac") as at:
            copied(at, "idle")
            with server_away():
                wait_for(lambda: not connected(), 20, "the connection is gone")
                expect(ours("pd"), "nothing was kept")
                # The timer of sunrpc, which a slow machine does not change.
                begun = time.monotonic()
                wait_for(lambda: not ours("pd") and not ours("mr"), 400 / SLOWNESS, "all is gone")
                expect(time.monotonic() - begun > 200, "it was not the timer")
            copied(at, "idle")

    with check("unmounting while there is no connection leaves nothing", 200):
        at = mount("3", "noac")
        copied(at, "unmount")
        with server_away():
            wait_for(lambda: not connected(), 20, "the connection is gone")
            expect(ours("pd"), "nothing was kept")
            run("umount", "-l", at)
            wait_for(lambda: not ours("pd") and not ours("mr"), 20, "all is gone")

    with check("attempts come ever later while the server refuses, up to 15 s", 300), \
            mounted("3", "noac") as at:
        copied(at, "refused")
        domain, before = ours("pd"), xprt_stats(at)
        with traced(run) as events:
            with server_away():
                # As long as it waits somebody wants a connection.
                waits = subprocess.Popen(["stat", f"{at}/reconnect/refused"], stdout=subprocess.DEVNULL)
                time.sleep(60)
                expect(waits.poll() is None, "it did not wait")
            begun = time.monotonic()
            equal(waits.wait(60 * SLOWNESS), 0, "what waited")
        equal(ours("pd"), domain, "protection domain, after attempts that failed")
        copied(at, "again")
        say(f"work goes on {time.monotonic() - begun:.1f} s after the server is back")
        delays = [number(t, "delay") for t in of(events, "xprtrdma_op_connect")]
        say(f"delays in jiffies: {delays}")
        expect(3 <= len(delays) <= 10, f"{len(delays)} attempts in a minute and until the last one succeeds")
        expect(delays[-1] > delays[2] > delays[1] == 0, "the delay does not grow")
        expect(max(delays) <= 15 * HZ, "attempts are more than 15 s apart")
        # Row C121: an attempt counts from when it is asked for, the delay is a part of it; those that fail do not.
        grown = {name: xprt_stats(at)[name] - before[name] for name in ("connect_count", "connect_time")}
        say(grown)
        equal(grown["connect_count"], 1, "connections")
        expect(delays[-1] // HZ - 1 <= grown["connect_time"] <= 17 + 5 * SLOWNESS, f"connect_time, in seconds: {grown}")
done()
