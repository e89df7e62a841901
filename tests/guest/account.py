# SPDX-License-Identifier: GPL-2.0
"""Nothing is left over: what is in use with all unmounted and nfsd stopped, before and after.

    account.py begin    before the test files: note what is in use
    account.py          after them: compare
    account.py here     print what is in use on this machine, as JSON
"""

import collections
import glob
import json
import sys

from lib import *

NOTES = "/tmp/account.json"
OBJECTS = ("pd", "cq", "qp", "cm_id", "mr", "ctx", "srq")
# What is a leak and what is noise: without a leak the pages were mostly within 200 KiB, but 2 and 3.7 MiB
# were seen on busy clients of either module, and slabs grow by up to 800 KiB with what tools and caches
# leave. A page or 100 bytes that leak with each of the thousands of RPCs of a suite are more.
TOLERANCE = {"slab": 1 << 20, "pages": 8 << 20, "vmalloc": 1 << 20, "percpu": 1 << 20}
# For each idle worker of the kernel more than there were, up to so many, that much of slabs and vmalloc beside: an idle
# one stays for five minutes, and a suite with many connections at once has made 26 of them.
WORKERS, WORKER = 64, {"slab": 28 << 10, "vmalloc": 22 << 10}
# Bits of the taint: memory was found as it must not be, the kernel died, it locked up. (A warning is on the
# console, where scripts/vm looks, and may be one that is known.)
BROKEN = 1 << 5 | 1 << 7 | 1 << 14
DEBUG = os.path.exists("/sys/kernel/debug/kmemleak")
# Probes at the end of functions give each task a page of its own, which it keeps.
PROBE = ("cd /sys/kernel/tracing && echo f:account vfs_open%return >>dynamic_events || exit 0; "
         "for on in 1 0; do echo $on >events/fprobes/account/enable; done; echo -:account >>dynamic_events")
# What mounts, Kerberos, namespaces and a server at the client have the kernel load.
MODULES = "nfsv3 nfsv4 nfsd rpcsec_gss_krb5 cts sch_netem veth"
# Of one of the general caches (kmalloc-96, ...), whose noise was up to 97 KiB: the context of a call that
# was leaked on purpose, 96 bytes, took 874 KiB after the names of a suite.
KMALLOC = 300 << 10


def memory():
    """Bytes of the kernel's memory that is no cache. One look may meet pages that are on their way."""
    looks = [memory_once() for _ in range(3)]
    return {key: sorted(look[key] for look in looks)[1] for key in TOLERANCE}


def memory_once():
    """One look at slabs, and at pages of which it is not known who has them."""
    write("/proc/sys/vm/drop_caches", "3")
    # Counts that the processors keep for themselves.
    read("/proc/sys/vm/stat_refresh")
    for path in glob.glob("/sys/kernel/slab/*/shrink"):
        write(path, "1")
    kib = {name: int(value) for name, value in re.findall(r"(\w+(?:\(\w+\))?): +(\d+)",
                                                           read("/proc/meminfo"))}
    known = ("MemFree", "Active", "Inactive", "Unevictable", "Slab", "KernelStack", "PageTables",
             "SecPageTables", "Percpu", "VmallocUsed")
    pages = (kib["MemTotal"] - sum(kib.get(name, 0) for name in known)) << 10
    # Free pages that a processor keeps for itself.
    pages -= sum(map(int, re.findall(r"(?m)^ +count: +(\d+)", read("/proc/zoneinfo")))) * 4096
    return {"slab": (kib["SUnreclaim"] << 10) - room(), "vmalloc": kib["VmallocUsed"] << 10,
            "percpu": kib["Percpu"] << 10, "pages": pages}


def slab_lines():
    return [line.split() for line in read("/proc/slabinfo").splitlines()[2:]]


def room():
    """Bytes of slabs, of those that do not shrink, in which no object is: they stay where the objects around do.

    (The files of sysfs for the RDMA devices of namespaces.py left 1.5 MiB of that, the first time.)
    """
    total = 0
    for words in slab_lines():
        try:
            kept = read(f"/sys/kernel/slab/{words[0]}/reclaim_account").strip() == "0"
        except FileNotFoundError:
            continue
        if kept:
            total += int(words[14]) * int(words[5]) * 4096 - int(words[1]) * int(words[3])
    return total


def slabs():
    return {words[0]: int(words[1]) * int(words[3]) for words in slab_lines()}


def objects():
    """How many RDMA objects there are on this machine."""
    return {kind: len(json.loads(run("rdma", "-j", "resource", "show", kind))) for kind in OBJECTS}


def here():
    """What is in use on this machine."""
    modules = sorted(line.split()[0] for line in read("/proc/modules").splitlines())
    # Idle ones of the pools all have one name.
    tasks = [re.sub(r"kworker/[u\d][^+]*$", "kworker", name) for name in run("ps", "-e", "-o", "comm=").split("\n")]
    return {"module": use_count(), "memory": memory(), "slabs": slabs(), "objects": objects(),
            "modules": modules, "tasks": tasks, "taint": int(read("/proc/sys/kernel/tainted"))}


def machines():
    """How to run commands where. (A client that does not run the tests may be gone at the end.)"""
    return {"server": on_server} | ({"client": on_client} if NODES == 2 and not ON_SERVER else {})


def everywhere():
    """What is in use on all machines."""
    script = "cd /run/payload/tests/guest && python3 account.py here"
    return {name: json.loads(command(script)) for name, command in machines().items()}


def begin():
    # Once around, so that what is made once is there.
    for vers in VERSIONS:
        with mounted(vers) as at:
            write_file(f"{at}/account", random_bytes(4 << 20), direct=vers == "3")
            read_file(f"{at}/account")
            os.unlink(f"{at}/account")
    # A kernel without BTF has no such probes. What a module has stays, also of those that only tests want.
    for command in machines().values():
        command(f"({PROBE}) 2>/dev/null; modprobe -a {MODULES}; true")
    on_server("nfsd-down")
    try:
        time.sleep(2)
        write(NOTES, json.dumps(everywhere()))
    finally:
        on_server("nfsd-up")


def more(before, after):
    """Of what there is more now, and by how much."""
    return {name: amount - before.get(name, 0) for name, amount in after.items()
            if amount != before.get(name, 0)}


def too_much(before, after):
    """Memory that is more than noise, in words."""
    if DEBUG:
        return []
    slabs = {name: grown for name, grown in more(before["slabs"], after["slabs"]).items()
             if name.startswith("kmalloc") and grown > KMALLOC}
    workers = min(WORKERS, max(0, after["tasks"].count("kworker") - before["tasks"].count("kworker")))
    memory = {name: grown for name, grown in more(before["memory"], after["memory"]).items()
              if grown > TOLERANCE[name] + workers * WORKER.get(name, 0)}
    return [f"{name}: {grown >> 10} KiB more" for name, grown in (memory | slabs).items()]


def compare(name, before, after):
    with check(f"{name}: the kernel is not broken"):
        equal(after["taint"] & BROKEN, 0, "taint")
    with check(f"{name}: RDMA objects and the module's use count are where they were"):
        equal(after["objects"], before["objects"], "RDMA objects")
        equal(after["module"], before["module"], "use count")
    with check(f"{name}: memory is where it was"):
        if DEBUG:
            raise Skip("KASAN keeps what was freed, slabs are larger; checkers.py asks kmemleak")
        for kind in ("memory", "slabs"):
            grown = sorted(more(before[kind], after[kind]).items(), key=lambda item: -item[1])
            say(f"{kind}: " + ", ".join(f"{name} {size >> 10:+} KiB" for name, size in grown[:6]))
        for kind in ("modules", "tasks"):
            came = more(collections.Counter(before[kind]), collections.Counter(after[kind]))
            say(f"{kind}: " + (", ".join(f"{name} {count:+}" for name, count in came.items()) or "no more"))
        equal(too_much(before, after), [], "memory")


def settled(before):
    """What is in use, when nothing is more than it was or a minute has gone.

    (What was leaked stays. What namespaces, threads and files of sysfs had may take a while to go.)
    """
    end = time.monotonic() + 60 * SLOWNESS
    while True:
        after = everywhere()
        if time.monotonic() > end or all(
                after[name]["objects"] == before[name]["objects"]
                and after[name]["module"] == before[name]["module"] and not too_much(before[name], after[name])
                for name in before):
            return after
        time.sleep(2)


def main():
    if sys.argv[1:] == ["here"]:
        print(json.dumps(here()))
    elif sys.argv[1:] == ["begin"]:
        begin()
    else:
        on_server("nfsd-down")
        time.sleep(2)
        before = json.loads(read(NOTES))
        after = settled(before)
        for machine in before:
            compare(machine, before[machine], after[machine])
        done()


if __name__ == "__main__":
    main()
