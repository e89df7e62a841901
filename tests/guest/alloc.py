# SPDX-License-Identifier: GPL-2.0
"""In steady state the transport module allocates no memory per RPC.

Histograms of the kernel's allocation events by stack, taken while fio runs after a warm-up. An
allocation is the module's if the first function that is no allocator belongs to the module; what
the layers below allocate when the module calls them is listed, and not counted.
"""

import contextlib
import re
import subprocess
import time

from lib import *

TRACING = "/sys/kernel/tracing"
EVENTS = ("kmem/kmalloc", "kmem/kmem_cache_alloc", "kmem/mm_page_alloc", "percpu/percpu_alloc_percpu")
ALLOCATOR = re.compile(
    r"^(_*k[mvz]*alloc|_*kmem_cache_alloc|_*krealloc|_*kvrealloc|_*vmalloc|_*vrealloc|"
    r"_*alloc_(frozen_)?pages|_*folio_alloc|_*get_free_page|get_zeroed_page|new_slab|allocate_slab|"
    r"_*slab_alloc|_*refill|alloc_from_|pcpu_alloc|_*alloc_percpu|mempool_|trace_|rust_helper_|"
    r"_R\w*(kernel5alloc|5alloc\w*kernel|4kbox|4kvec|9allocator)|bulk_alloc|alloc_bulk|___slab|"
    r"_*do_k|stack_trace|event_hist|__traceiter|event_triggers)")
LOADS = {
    "4 KiB random reads and writes": ["--rw=randrw", "--bs=4k", "--iodepth=16", "--size=16m"],
    "1 MiB sequential writes": ["--rw=write", "--bs=1m", "--iodepth=4", "--size=32m"],
    "1 MiB sequential reads": ["--rw=read", "--bs=1m", "--iodepth=4", "--size=32m"],
}


@contextlib.contextmanager
def fio(at, args):
    """The body runs while the load does, and well after its beginning."""
    load = subprocess.Popen(["fio", "--name=load", f"--filename={at}/alloc/f", "--direct=1",
                             "--ioengine=libaio", "--time_based", "--runtime=300", *args],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(4)
        yield
        expect(load.poll() is None, f"fio ended with {load.returncode}")
    finally:
        load.terminate()
        load.wait()


HIST = "hist:keys=common_stacktrace:size=4096"


@contextlib.contextmanager
def counting():
    """Count allocations by stack while the body runs; read them before it ends."""
    for event in EVENTS:
        write(f"{TRACING}/events/{event}/trigger", HIST)
    try:
        yield
    finally:
        for event in EVENTS:
            write(f"{TRACING}/events/{event}/trigger", "!" + HIST)


def histogram(event):
    """[(count, [frame, ...])] of one event, from the innermost frame outwards."""
    found = []
    for frames, count in re.findall(r"\{ common_stacktrace:?\s*(.*?)\} hitcount:\s*(\d+)",
                                    read(f"{TRACING}/events/{event}/hist"), re.S):
        names = [f.strip() for f in re.split(r"[\n,]", frames) if f.strip()]
        found.append((int(count), names))
    return found


def counts():
    """(allocations of the module by function, those below its calls, all of the kernel)."""
    own, below, total = {}, {}, 0
    tag = f"[{MODULE}]"
    for event in EVENTS:
        for count, frames in histogram(event):
            total += count
            callers = [f for f in frames if not ALLOCATOR.match(f)]
            mine = [f for f in callers if f.endswith(tag)]
            if callers[:1] == mine[:1] != []:
                own[callers[0]] = own.get(callers[0], 0) + count
            elif mine:
                key = f"{callers[0]} below {mine[0]}"
                below[key] = below.get(key, 0) + count
    return own, below, total


def judge(at, args):
    """Allocations by the module, and RPCs, in some seconds in the middle of a load.

    Its beginning and end are left out: the first RPC of a kind may make buffers grow, once.
    """
    with contextlib.ExitStack() as stack:
        with fio(at, args):
            stack.enter_context(counting())
            before = xprt_stats(at)["sends"]
            time.sleep(6)
            # Reading takes long, the more so while they grow.
            for event in EVENTS:
                with open(f"{TRACING}/events/{event}/trigger", "a") as f:
                    f.write(HIST + ":pause")
            rpcs = xprt_stats(at)["sends"] - before
        own, below, total = counts()
    say(f"{rpcs} RPCs, {total} allocations in the whole kernel")
    for key, count in sorted(below.items(), key=lambda i: -i[1])[:3]:
        say(f"not counted: {count} by {key}")
    for key, count in sorted(own.items(), key=lambda i: -i[1]):
        say(f"the module's: {count} in {key}")
    expect(rpcs >= 20, f"only {rpcs} RPCs were made")
    expect(total > 0, "no allocation was seen at all: the events do not work")
    return sum(own.values()), rpcs


with server_folder("alloc") as folder:
    with check("an allocation of the module is seen when it makes one"):
        with counting():
            with mounted("4.2"):
                pass
            own, _, total = counts()
        for key, count in sorted(own.items(), key=lambda i: -i[1])[:8]:
            say(f"{count} in {key}")
        say(f"{sum(own.values())} allocations of the module in one mount and unmount")
        expect(sum(own.values()) > 50, f"a mount seems to need only that, of {total} in all")
    with mounted("4.2") as at:
        write_file(f"{at}/alloc/f", random_bytes(32 << 20))
        for name, args in LOADS.items():
            with check(f"no allocation per RPC: {name}"):
                count, rpcs = judge(at, args)
                if count and MODULE == "rpcrdma":
                    raise Skip(f"the C module makes {count} allocations in {rpcs} RPCs")
                equal(count, 0, f"allocations by the module in {rpcs} RPCs")
done()
