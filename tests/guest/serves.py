# SPDX-License-Identifier: GPL-2.0
"""What the server's transport shows, and what both sides do with other settings than the defaults.

Nothing here depends on which module the server has.
"""

import concurrent.futures
import os

from events import *
from lib import *

DIRECTORY = "/proc/sys/sunrpc/svc_rdma/"
TUNABLES = {
    # name: (default, smallest, largest)
    "max_requests": (128, 4, 16384),
    "max_req_size": (4096, 4096, 65536),
    "max_outbound_read_requests": (16, 1, 255),
}
COUNTERS = ("rdma_stat_read", "rdma_stat_recv", "rdma_stat_write", "rdma_stat_sq_starve")
UNUSED = ("rdma_stat_rq_starve", "rdma_stat_rq_poll", "rdma_stat_rq_prod", "rdma_stat_sq_poll",
          "rdma_stat_sq_prod")
CLIENT = {name: "/proc/sys/sunrpc/rdma_" + name
          for name in ("slot_table_entries", "max_inline_read", "max_inline_write")}


def shown(name):
    return int(on_server(f"cat {DIRECTORY}{name}"))


def counts():
    return [int(n) for n in on_server("cd " + DIRECTORY + "; cat " + " ".join(COUNTERS)).split()]


@contextlib.contextmanager
def settings(server=(), client=()):
    """Tunables are changed within the body."""
    old = {name: shown(name) for name, _ in server}
    ours = {name: read(CLIENT[name]) for name, _ in client}
    try:
        on_server("; ".join(["true"] + [f"echo {n} >{DIRECTORY}{name}" for name, n in server]))
        for name, n in client:
            write(CLIENT[name], str(n))
        yield
    finally:
        on_server("; ".join(["true"] + [f"echo {n} >{DIRECTORY}{name}" for name, n in old.items()]))
        for name, n in ours.items():
            write(CLIENT[name], n)


with check("debugfs: which client has which queue pair"):
    if os.environ["SERVER_FLAVOUR"] != "rust":
        raise Skip("the C module does not show that")
    before = connections("client", on_server(f"cat {CONNECTIONS}"))
    with mounted("3", "nconnect=2") as at:
        os.listdir(at)
        found = [words for words in connections("client", on_server(f"cat {CONNECTIONS}"))
                 if words["qp"] not in [old["qp"] for old in before]]
        for words in found:
            say(" ".join("=".join(pair) for pair in words.items()))
        equal(len(found), 2, "connections")
        expect({words["qp"] for words in found} <= queue_pairs(on_server("rdma resource show qp")), "queue pairs")
        for words in found:
            equal([words[name] for name in ("device", "credits", "receives", "replies", "payload_pages", "congested")],
                  [f"{RDMA}0", "128", "148", "0", "0", "0"], "device, credits, what is posted")

for name, (default, low, high) in TUNABLES.items():
    with check(f"server's {name}: default, mode and range"):
        path = DIRECTORY + name
        equal(on_server(f"stat -c %a {path}").strip(), "644", "mode")
        equal(shown(name), default, "default")
        try:
            for value in (low, high):
                on_server(f"echo {value} >{path}")
                equal(shown(name), value, "value written")
            for value in (low - 1, high + 1):
                status, _ = run("on-server", f"echo {value} >{path}", ok=False)
                expect(status, f"{value} was taken")
            equal(shown(name), high, "value after refused ones")
        finally:
            on_server(f"echo {default} >{path}")

with check("client's rdma_pad_optimize takes any number, and no more"):
    path = "/proc/sys/sunrpc/rdma_pad_optimize"
    try:
        for value in (-1 << 31, (1 << 31) - 1, 1):
            write(path, str(value))
            equal(int(read(path)), value, "value written")
        status, _ = run("sh", "-c", f"echo {1 << 31} >{path}", ok=False)
        expect(status, "a number of more than 32 bits was taken")
    finally:
        write(path, "0")

with check("server's placeholders are 0 and stay so"):
    for name in UNUSED:
        equal(shown(name), 0, name)
        status, _ = run("on-server", f"echo 1 >{DIRECTORY}{name}", ok=False)
        expect(status, f"{name}: 1 was taken")

with check("server's counters grow, and are 0 when written to"), server_folder("serves"):
    with mounted("4.2") as at:
        before = counts()
        write_file(f"{at}/serves/f", random_bytes(1 << 20), direct=True)
        expect(read_file(f"{at}/serves/f", direct=True) == random_bytes(1 << 20), "data differ")
        grown = [new - old for new, old in zip(counts(), before)]
        say(dict(zip(COUNTERS, grown)))
        expect(all(grown[:3]), f"counters grew by {grown}")
    for name in COUNTERS:
        on_server(f"echo 5 >{DIRECTORY}{name}")
    equal(counts(), [0] * 4, "counters")

with check("the server's class has its name and its payload, its listeners a port each"):
    lines = on_server("cat /proc/sys/sunrpc/transports").splitlines()
    expect("rdma 4194304" in lines, f"transports are {lines}")
    lines = on_server("cat /proc/fs/nfsd/portlist").splitlines()
    equal(lines.count(f"rdma {PORT}"), 2, f"listeners in {lines}")
    # Row S11: so many may wait to be accepted.
    with probes(on_server, "f:probe_listen rdma_listen backlog=backlog:s32") as events:
        on_server("nfsd-down; nfsd-up")
    # (The connection manager calls it once more for each device.)
    backlogs = [number(text, "backlog") for text in of(events, "probe_listen")]
    expect(len(backlogs) >= 2 and set(backlogs) == {10}, f"backlogs: {backlogs}")

with check("a port for which there is a listener, and one that is none: no references are lost"):
    before = on_server("cat /sys/module/rpcrdma*/refcnt").strip()
    for _ in range(20):
        # The shell's own echo does not say why.
        status, text = run("on-server", f"/bin/echo rdma {PORT} >/proc/fs/nfsd/portlist", ok=False)
        expect(status, "a second listener for the same port")
        # What the connection manager says when one of the two is for all addresses.
        expect("Cannot assign requested address" in text, f"it fails with: {text}")
    equal(on_server("cat /sys/module/rpcrdma*/refcnt").strip(), before, "references of the module")


def remote(size):
    """How many regions the client had to invalidate for reading `size` bytes ten times."""
    with server_folder("serves"), mounted("4.2") as at:
        write_file(f"{at}/serves/f", random_bytes(size), direct=True)
        before = xprt_stats(at)
        for _ in range(10):
            read_file(f"{at}/serves/f", direct=True, block=size)
        after = xprt_stats(at)
        return [after[n] - before[n] for n in ("write_chunk_count", "local_inv_needed")]


with check("the server invalidates the one region of a READ"), trusting():
    chunks, needed = remote(65536)
    expect(chunks >= 10, f"{chunks} Write chunks")
    equal(needed, 0, "regions left for the client to invalidate")
with check("a READ of a megabyte takes one region of the client, as a small one does"):
    unlike("client", "the C module's regions are as large as a piece of memory list of the device (X12)")
    equal(remote(1 << 20)[0], remote(65536)[0], "regions of ten READs of a megabyte, and of 64 KiB")
with check("a client that does not trust the server invalidates it too, as the device is software"):
    if not os.path.exists(TRUST):
        raise Skip("the C module trusts it")
    chunks, needed = remote(65536)
    expect(chunks >= 10, f"{chunks} Write chunks")
    expect(needed >= chunks, f"{needed} of at least {chunks} regions are invalidated by the client")


def content(name):
    return random_bytes(300001, int(name[1:]))


def work(at, name):
    data = content(name)
    write_file(f"{at}/serves/{name}", data)
    expect(read_file(f"{at}/serves/{name}") == data, f"{name}: data differ")
    for n in range(20):
        os.symlink("s" * 1000, f"{at}/serves/{name}-{n}")
    equal(len([n for n in os.listdir(f"{at}/serves") if n.startswith(name + "-")]), 20, "links")


def agree(words):
    """Whether credits and sizes of messages that our client has are those of both ends' settings."""
    slots, *ours = [int(read(CLIENT[name])) for name in ("slot_table_entries", "max_inline_write", "max_inline_read")]
    granted, asked = map(int, words["credits"].split("/"))
    # A device may have no queues for so many calls: halved until it has.
    halved = [slots >> n for n in range(1 + (slots > 1024) * 8)]
    # What can be announced.
    size = shown("max_req_size") // 1024 * 1024
    expect(asked in halved and granted == min(asked, shown("max_requests")), f"credits: {words['credits']}")
    equal(words["inline"], "/".join(str(min(n, size)) for n in ours), "sizes of messages")


def told():
    """What the server says of a connection that is made now. (It says no more than ten such things in half a minute.)"""
    time.sleep(31)
    on_server("dmesg -C")
    with mounted("4.2") as at:
        os.listdir(at)
        return on_server("dmesg | grep 'connection of client .* credits'")


def all_at_once(count):
    with server_folder("serves") as folder, mounted("4.2") as at:
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda n: work(at, f"w{n}"), range(count)))
        equal(xprt_stats(at)["connect_count"], 1, "connections made")
        if FLAVOURS["client"] == "rust":
            found = connections("server", read(CONNECTIONS))
            equal(len(found), 1, "connections that are shown")
            agree(found[0])
        if FLAVOURS["server"] == "rust":
            (found,) = connections("client", on_server(f"cat {CONNECTIONS}"))
            # What these devices have queues for, and memory for regions (siw).
            most = 4096 if RDMA == "rxe" else 2048
            equal(int(found["credits"]), min(shown("max_requests"), most), "credits at the server")
        wanted = {f"w{n}": sha(content(f"w{n}")) for n in range(count)}
        equal(server_sums(folder + " && find . -type l -delete"), wanted, "sums")


for what, server, client in (
        ("4 slots", (), (("slot_table_entries", 4),)),
        ("16384 slots", (), (("slot_table_entries", 16384),)),
        ("4 requests", (("max_requests", 4),), ()),
        ("16384 requests", (("max_requests", 16384),), ()),
        ("messages of 64 KiB", (("max_req_size", 65536),),
         (("max_inline_read", 65536), ("max_inline_write", 65536))),
        ("messages of 64 KiB there, 1 KiB here", (("max_req_size", 65536),),
         (("max_inline_read", 1024), ("max_inline_write", 1024))),
        ("messages of 5000 bytes there, 8 KiB here", (("max_req_size", 5000),),
         (("max_inline_read", 8192), ("max_inline_write", 8192))),
        ("messages of 4 KiB there, 64 KiB here", (),
         (("max_inline_read", 65536), ("max_inline_write", 65536)))):
    with check(f"twelve jobs at once with {what}", 240), settings(server, client):
        if "16384 slots" in what:
            unlike("client", "the C client does not connect then")
        if "16384 requests" in what:
            unlike("server", "the C server takes no connection then")
        all_at_once(12)
        if "5000" in what and FLAVOURS["server"] == "rust":
            said = told()
            expect("messages of 4096 and 4096 bytes" in said, f"it uses more than it announces: {said}")
done()
