# SPDX-License-Identifier: GPL-2.0
"""What the transport shows to an administrator: mountstats, sysctls, RDMA resources, module names."""

import concurrent.futures
import os
import re
import time

from lib import *

SYSCTLS = {
    # name: (default, smallest, largest)
    "rdma_slot_table_entries": (128, 4, 16384),
    "rdma_max_inline_read": (4096, 1024, 65536),
    "rdma_max_inline_write": (4096, 1024, 65536),
    "rdma_inline_write_padding": (0, 0, 4096),
    "rdma_memreg_strategy": (5, 0, 6),
    "rdma_pad_optimize": (0, None, None),
}
if os.environ["CLIENT"] == "rust":
    SYSCTLS["rdma_trust_servers"] = (0, 0, 1)


def per_op(at, name):
    """What mountstats says of one procedure of a mount."""
    part, = [p for p in re.split(r"(?m)^device ", read("/proc/self/mountstats")) if f" mounted on {at} " in p]
    line = re.search(rf"(?m)^\s*{name}: (.*)$", part).group(1)
    names = "ops transmissions timeouts sent received queue rtt execute errors".split()
    return dict(zip(names, map(int, line.split())))


for name, (default, low, high) in SYSCTLS.items():
    path = "/proc/sys/sunrpc/" + name
    with check(f"sysctl {name}: default, mode and range"):
        equal(os.stat(path).st_mode & 0o777, 0o644, "mode")
        equal(int(read(path)), default, "default")
        if low is not None:
            for value in (low, high):
                write(path, f"{value}\n")
                equal(int(read(path)), value, "value written")
            for value in (low - 1, high + 1):
                try:
                    write(path, f"{value}\n")
                except OSError as error:
                    equal(error.errno, 22, f"errno for {value}")
                else:
                    raise Failed(f"{value} was taken")
            for text in ("abc", "-1", "12x", "99999999999", "0x"):
                try:
                    write(path, text + "\n")
                except OSError as error:
                    equal(error.errno, 22, f"errno for {text}")
                else:
                    raise Failed(f"{text} was taken")
            equal(int(read(path)), high, "value after refused ones")
        write(path, f"{default}\n")

with check("debugfs: which transport has which queue pair, credits and regions"):
    if os.environ["CLIENT"] != "rust":
        raise Skip("the C module does not show that")
    with mounted("4.2", "nconnect=2") as at:
        os.listdir(at)
        found = connections("server", read(CONNECTIONS))
        for words in found:
            say(" ".join("=".join(pair) for pair in words.items()))
        equal(sorted(f"xprt-{words['xprt']}-rdma" for words in found),
              sorted(os.path.basename(name) for name in transports()), "transports")
        expect({words["qp"] for words in found} <= queue_pairs(run("rdma", "resource", "show", "qp")), "queue pairs")
        for words in found:
            equal([words[name] for name in ("device", "server", "inline")],
                  [f"{RDMA}0", f"{SERVER}:{PORT}", "4096/4096"], "device, server, thresholds")
            granted, asked = map(int, words["credits"].split("/"))
            expect(1 < granted <= asked == 128, f"{granted} of {asked} credits")
            # All but the one for padding.
            equal(int(words["idle_regions"]), int(words["regions"]) - 1, "idle regions")
    wait_for(lambda: not connections("server", read(CONNECTIONS)), 20, "no connection without a mount")

with server_folder("stats") as folder:
    data = random_bytes(1 << 20)
    with check("mountstats: xprt line with read, write and reply chunks"), mounted("4.2") as at:
        zero = xprt_stats(at)
        write_file(f"{at}/stats/f", data, direct=True)
        expect(read_file(f"{at}/stats/f", direct=True) == data, "data differ")
        for n in range(50):
            write_file(f"{at}/stats/{'n' * 200}{n}", b"")
        os.listdir(f"{at}/stats")
        # (What renews the lease comes when it likes.)
        wait_for(lambda: len({xprt_stats(at)[name] for name in ("sends", "recvs")}) == 1, 10, "each call has its reply")
        stats = xprt_stats(at)
        say(xprt_lines(at)[0])
        for name in ("read_chunk_count", "write_chunk_count", "reply_chunk_count", "mrs_allocated"):
            expect(stats[name] > 0, f"{name} is {stats[name]}")
        for name in ("bad_xids", "bad_reply_count", "mrs_recycled", "mrs_orphaned", "port", "zero"):
            equal(stats[name], 0, name)
        equal(stats["connect_count"], 1, "connect_count")
        expect(stats["sends"] > zero["sends"], "sends did not grow")
        expect(stats["total_rdma_request"] >= 1 << 20, "total_rdma_request below what was read")
        expect(stats["total_rdma_reply"] >= 1 << 20, "total_rdma_reply below what was read")
    with check("mountstats: each transport counts its own"), mounted("3") as at, mounted("4.2", at="/mnt/b") as other:
        counted = ("read_chunk_count", "write_chunk_count", "total_rdma_request", "total_rdma_reply", "pullup_copy_count")
        before, idle = xprt_stats(at), xprt_stats(other)
        write_file(f"{at}/stats/f", data, direct=True)
        read_file(f"{at}/stats/f", direct=True)
        after, still = xprt_stats(at), xprt_stats(other)
        equal([name for name in counted[:4] if after[name] == before[name]], [], "what did not grow")
        equal([name for name in counted if still[name] != idle[name]], [], "what grew elsewhere")
    with check("mountstats and nfsiostat of nfs-utils know what that means"), mounted("4.2") as at:
        write_file(f"{at}/stats/f", data, direct=True)
        read_file(f"{at}/stats/f", direct=True)
        told, stats = run("mountstats", "mountstats", "--xprt", at), xprt_stats(at)
        say(told)
        for line, name in (("Read segments", "read_chunk_count"), ("Write segments", "write_chunk_count"),
                           ("Reply segments", "reply_chunk_count"), ("Allocated MRs", "mrs_allocated")):
            equal(int(re.search(rf"(?m)^\s*{line}: (\d+)$", told)[1]), stats[name], line)
        expect("Transport protocol: rdma" in told, "another protocol")
        told = run("nfsiostat", at)
        per_write = float(re.search(r"(?m)^write: .*\n +\S+ +\S+ +(\S+)", told)[1])
        # With what is around the payload.
        expect(1024 < per_write < 1026, told)
    with check("mountstats: how long the transport has been idle, how many calls were under way"), \
            mounted("3", "noac") as at:
        before = xprt_stats(at)
        for _ in range(20):
            os.statvfs(at)
        after = xprt_stats(at)
        # Each call counts what is under way when it has been sent, and what waits for a slot. A reply that
        # is faster than the sender's counting leaves nothing under way.
        grown = {name: after[name] - before[name] for name in ("sends", "req_u", "bklog_u")}
        say(grown)
        expect(grown["sends"] >= 20, "calls that were sent")
        expect(grown["sends"] // 2 <= grown["req_u"] <= 2 * grown["sends"], "calls under way")
        equal(grown["bklog_u"], 0, "calls that wait for a slot")
        expect(after["idle_time"] <= 2 * SLOWNESS, f"idle for {after['idle_time']} s")
        begun = time.monotonic()
        time.sleep(4)
        idle = xprt_stats(at)["idle_time"]
        expect(3 <= idle <= time.monotonic() - begun + 2, f"idle for {idle} s after four seconds")
    with check("mountstats: small I/O counts as pull-up, not as chunks"), mounted("4.2") as at:
        before = xprt_stats(at)
        write_file(f"{at}/stats/small", b"x" * 1000, direct=True)
        after = xprt_stats(at)
        equal(after["read_chunk_count"], before["read_chunk_count"], "read_chunk_count")
        expect(after["pullup_copy_count"] >= before["pullup_copy_count"] + 1000, "pullup_copy_count")

    with check("mountstats: what is asked for counts with the place for padding"), \
            mounted("3") as at:
        with open(f"{at}/stats/f", "wb") as f:
            f.write(data)
        fd = os.open(f"{at}/stats/f", os.O_RDONLY | os.O_DIRECT)
        room = buffer(bytes(1 << 16))
        try:
            for size, pad in ((65536, 0), (65533, 4), (50002, 4), (50000, 0)):
                before = xprt_stats(at)
                equal(os.preadv(fd, [room[:size]], 0), size, "bytes read")
                after = xprt_stats(at)
                equal(after["total_rdma_request"] - before["total_rdma_request"], size + pad,
                      f"room for {size} bytes")
        finally:
            os.close(fd)

    with check("mountstats: what is copied into pages, and what the server writes there"), \
            mounted("3", "noac") as at:
        fd = os.open(f"{at}/stats/f", os.O_RDONLY | os.O_DIRECT)
        room = buffer(bytes(1 << 16))
        try:
            for size, copied, written in ((1000, 1000, 0), (2001, 2001, 0), (1 << 16, 0, 1 << 16)):
                before = xprt_stats(at)
                equal(os.preadv(fd, [room[:size]], 0), size, "bytes read")
                after = xprt_stats(at)
                for name, wanted in (("fixup_copy_count", copied), ("total_rdma_reply", written)):
                    equal(after[name] - before[name], wanted, f"{name} for {size} bytes")
        finally:
            os.close(fd)

    with check("mountstats: bytes and times of calls"), mounted("3", "noac") as at:
        # A header of as many bytes each time, and what is written.
        fd = os.open(f"{at}/stats/f", os.O_WRONLY | os.O_DIRECT)
        room = buffer(data)
        try:
            header = None
            for size in (4, 1000, 4096, 1 << 16):
                before, begun = per_op(at, "WRITE"), time.monotonic()
                for _ in range(10):
                    equal(os.pwritev(fd, [room[:size]], 0), size, "bytes written")
                took = (time.monotonic() - begun) * 1000
                after = per_op(at, "WRITE")
                ops, sent, queue, rtt, execute = (after[n] - before[n] for n in
                                                  ("ops", "sent", "queue", "rtt", "execute"))
                say(f"{size} bytes: {ops} calls, {sent} bytes, {queue} + {rtt} of {execute} ms, {took:.1f}")
                equal(ops, 10, "calls")
                header = header or sent // ops - size
                equal(sent, ops * (header + size), "bytes sent")
                expect(rtt <= execute <= took + 10 and queue + rtt <= execute + 10, "times that make no sense")
        finally:
            os.close(fd)
        expect(80 < header < 250, f"headers of {header} bytes")

    with check("mountstats: buffers that grow count with their size, and once"), mounted("4.2") as at:
        # What the server calls itself may be longer than the buffers that slots begin with.
        grown = xprt_stats(at)["hardway_register_count"]
        say(f"{grown} bytes")
        expect(4096 < grown < 1 << 20, "hardway_register_count")
        for _ in range(50):
            os.statvfs(at)
            os.listdir(at)
        equal(xprt_stats(at)["hardway_register_count"], grown, "hardway_register_count afterwards")

with server_folder("stats"), check("sysctls changed under a mount: it goes on, others have them"), \
        mounted("3") as at:
    for name in ("rdma_slot_table_entries", "rdma_max_inline_read", "rdma_max_inline_write"):
        default, low, high = SYSCTLS[name]
        for value in (low, min(high, 4 * default)):
            write("/proc/sys/sunrpc/" + name, str(value))
            try:
                with mounted("4.2", at="/mnt/b") as other:
                    for folder in (at, other):
                        write_file(f"{folder}/stats/f", data)
                        expect(read_file(f"{folder}/stats/f", direct=True) == data, "data differ")
            finally:
                write("/proc/sys/sunrpc/" + name, str(default))
    equal(xprt_stats(at)["connect_count"], 1, "connections made")

with check("calls that have to wait for a slot go on as soon as there is one", 200):
    path, took, waited = "/proc/sys/sunrpc/rdma_slot_table_entries", [], []
    try:
        for slots in (128, 4):
            write(path, f"{slots}\n")
            with mounted("3", "noac") as at, concurrent.futures.ThreadPoolExecutor(16) as pool:
                begun = time.monotonic()
                list(pool.map(lambda n: [os.statvfs(at) for _ in range(40)], range(16)))
                took.append(time.monotonic() - begun)
                waited.append(xprt_stats(at)["bklog_u"])
    finally:
        write(path, "128\n")
    say(f"640 calls of 16 processes: {took[0]:.1f} s with 128 slots, {took[1]:.1f} s with 4")
    # With a quarter of a second for each call that finds none: 10 s more, or almost.
    expect(took[1] < took[0] + 5 * SLOWNESS, "that took too long")
    say(f"calls that waited for a slot, added up: {waited}")
    expect(waited[0] == 0 < waited[1], "mountstats: calls that wait for a slot")

with check("/proc/mounts shows proto=rdma and the port"), mounted("4.2") as at:
    line, = [l for l in read("/proc/mounts").splitlines() if f" {at} " in l]
    expect("proto=rdma" in line and f"port={PORT}" in line, line)

for server, six in ((SERVER, ""), (SERVER6, "6")):
    old, new = (re.sub(r"(proto=\w+)", rf"\g<1>{six}", options(vers)) for vers in ("3", "4.2"))
    with check(f"/proc/fs/nfsfs shows address and port in hexadecimal, proto=rdma{six}"), \
            mounted("3", opts=old, server=server), mounted("4.2", opts=new, server=server, at="/mnt/b"):
        for file in ("servers", "volumes"):
            say(read("/proc/fs/nfsfs/" + file))
            equal(nfsfs(file), [(vers, *hexadecimal(server, PORT)) for vers in "34"], file)


def ours():
    """How many RDMA objects the module has."""
    return {kind: len([l for l in rdma_objects(kind) if f"[{MODULE}]" in l]) for kind in ("pd", "cq", "cm_id", "mr")}


with check("rdma resource shows each transport's own PD, CQs and MRs"):
    # Those of earlier mounts go in their own time, and in one guest so do the server's.
    wait_for(lambda: not transports() and ours()["pd"] == 0, 20, "no connection is left")
    with mounted("4.2"):
        one = ours()
        expect(all(one.values()), f"of [{MODULE}]: {one}; {rdma_objects('mr')}")
        with mounted("3", at="/mnt/b"):
            two = ours()
            expect(all(two[kind] > one[kind] for kind in one), f"with one mount: {one}, with two: {two}")

with check("module use count follows the mounts"):
    # Transports of earlier mounts go in their own time.
    wait_for(lambda: not transports() and (NODES == 1 or use_count() == 0), 20, "no transport is left")
    base = use_count()
    with mounted("4.2"):
        expect(use_count() > base, f"use count {use_count()} with a mount, {base} before")
    wait_for(lambda: use_count() == base, 10, f"use count back at {base}")

with check("module has the aliases that mount and nfsd ask for"):
    path = f"/run/payload/modules/{MODULE}.ko"
    text = run("modinfo", path if os.path.exists(path) else MODULE)
    expect("\nparm:" not in text, "it has parameters")
    aliases = set(re.findall(r"(?m)^alias: +(\S+)$", text))
    wanted = {"xprtrdma", "rpcrdma6", "svcrdma"} | ({"rpcrdma"} if MODULE != "rpcrdma" else set())
    expect(wanted <= aliases, f"aliases are {sorted(aliases)}")
    expect(re.search(r"(?m)^license: +.*GPL", text), "licence is not GPL")

with check("rpc xprt files of debugfs and sysfs can be read"), mounted("4.2") as at:
    found = transports()
    expect(found, "no transport in sysfs")
    for name in found:
        expect(f"dst_port={PORT}\n" in read(f"{name}/xprt_info"), read(f"{name}/xprt_info"))
        expect(" CONNECTED" in f" {read(f'{name}/xprt_state')}", read(f"{name}/xprt_state"))
    seen = []
    for top in ("/sys/kernel/debug/sunrpc", "/sys/kernel/sunrpc"):
        for folder, _, names in os.walk(top):
            for name in names:
                try:
                    text = read(os.path.join(folder, name))
                except PermissionError:
                    continue
                except OSError:
                    # What was unmounted before goes in its own time.
                    expect(not os.path.exists(os.path.join(folder, name)), f"{folder}/{name} cannot be read")
                    continue
                if "rdma" in text:
                    seen.append(os.path.join(folder, name))
    expect(any("debug" in s for s in seen), f"rdma only in {seen}")
done()
