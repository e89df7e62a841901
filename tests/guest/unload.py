# SPDX-License-Identifier: GPL-2.0
"""After the last unmount the module can go, and leaves nothing; it comes back when asked for."""

import ctypes
import errno
import itertools
import os
import re

from events import *
from lib import *
from shim import *


# Of x86-64, for the machines of these tests.
FINIT_MODULE = 313
STARVED = ("/sys/kernel/debug/failslab", "/sys/kernel/debug/fail_page_alloc")


def modules():
    return set(re.findall(r"(?m)^(\S+)", read("/proc/modules")))


def sysctls():
    found = [n for n in os.listdir("/proc/sys/sunrpc") if "rdma" in n]
    return found


def rescuers():
    """Threads that work for the module's queues when there is no memory for others (wherever the module is)."""
    return sorted(re.findall(r"(?m)^kworker/R-(rpcrdma_\S+)$", run("ps", "-e", "-o", "comm=")))


def gone(text):
    """Nothing of the module: not loaded, no sysctls, no thread, no RDMA objects."""
    expect(MODULE not in modules(), f"{text}: {MODULE} is still loaded")
    equal(sysctls(), [], "sysctls left")
    equal(rescuers(), [], "threads left")
    for kind in ("pd", "cq", "qp", "cm_id", "mr"):
        lines = [l for l in rdma_objects(kind) if f"[{MODULE}]" in l]
        equal(lines, [], f"{kind} left")
    for kind in ("pd", "cq", "mr", "qp"):
        # The CM keeps QP 1 per port and what belongs to it.
        lines = [l for l in rdma_objects(kind) if not re.search(r"\[ib_core\]|\[ib_cm\]|lqpn 1 ", l)]
        equal(lines, [], f"{kind} left that belong to nobody known")


def starved_load(number):
    """Load the module with this allocation below the code of modules failing: (errno or 0, has it failed?)."""
    fd = os.open("/run/payload/modules/rpcrdma_rust.ko", os.O_RDONLY)
    try:
        write("/proc/thread-self/fail-nth", str(number))
        status = libc.syscall(FINIT_MODULE, fd, b"", 0)
        error = status and ctypes.get_errno()
        left = read("/proc/thread-self/fail-nth")
        write("/proc/thread-self/fail-nth", "0")
        return error, int(left) == 0
    finally:
        os.close(fd)


def starved_loads():
    """Load the module with each allocation failing in turn, of slabs and of pages: how many failed, how many loads."""
    # Only modules are above the kernel itself.
    above = "0x" + re.search(r"(?m)^(\w+) \w _end$", read("/proc/kallsyms")).group(1)
    for where in STARVED:
        for name, value in (("require-start", above), ("require-end", "0xffffffffff000000"), ("min-order", "0"),
                            ("stacktrace-depth", "32"), ("verbose", "1"), ("ignore-gfp-wait", "N"),
                            ("ignore-gfp-highmem", "N")):
            if os.path.exists(f"{where}/{name}"):
                write(f"{where}/{name}", value)
    lost = 0
    for number in itertools.count(1):
        error, failed = starved_load(number)
        if not error:
            run("rmmod", MODULE)
        expect(MODULE not in modules() and not sysctls(), f"something is left without allocation {number}")
        if not failed:
            equal(error, 0, "error, with all the memory it wants")
            gone("after all of them")
            return number - 1, lost
        expect(error in (0, errno.ENOMEM), f"allocation {number}: {os.strerror(error)}")
        lost += bool(error)


if NODES == 1:
    on_server("nfsd-down")
with check("use count is 0 with nothing mounted"):
    wait_for(lambda: use_count() == 0, 20, f"use count 0, it is {use_count()}")
with check("rmmod, nothing left"):
    run("rmmod", MODULE)
    gone("after rmmod")
with check("RDMA device can be removed and comes back"):
    run("rdma", "link", "delete", f"{RDMA}0")
    run("rdma", "link", "add", f"{RDMA}0", "type", RDMA, "netdev", NETDEV)
with check("mount loads the module by itself"):
    if NODES == 1:
        on_server("nfsd-up")
    with mounted("4.2") as at:
        expect(MODULE in modules(), f"mounted without {MODULE}")
        os.listdir(at)
with check("the module's work goes on without memory: each of its queues has a thread"):
    unlike("client", "it has others")
    equal(rescuers(), ["rpcrdma_closing", "rpcrdma_rust"], "queues with a thread")
with check("load and unload twenty times"):
    if NODES == 1:
        on_server("nfsd-down")
    wait_for(lambda: use_count() == 0, 20, f"use count 0, it is {use_count()}")
    for n in range(20):
        run("rmmod", MODULE)
        run("load-transport")
with check("mount right after a load, unload right after an unmount"):
    if NODES == 1:
        raise Skip("in one guest nfsd holds the module")
    for n in range(3):
        run("rmmod", MODULE)
        with mounted("4.2"):
            pass
        wait_for(lambda: use_count() == 0, 20, f"use count 0, it is {use_count()}")
with check("unload with all events on, and more of them than the buffer holds"):
    if NODES == 1:
        raise Skip("in one guest nfsd holds the module")
    shell(run, f"cd {TRACING}; echo 64 >buffer_size_kb; echo >trace; echo 1 >events/rpcrdma/enable")
    try:
        with mounted("3") as at, server_folder("unload"):
            write_file(f"{at}/unload/f", random_bytes(1 << 20), direct=True, block=4096)
        lost = re.findall(r"(?m)^overrun: (\d+)", shell(run, f"cat {TRACING}/per_cpu/cpu*/stats"))
        expect(sum(map(int, lost)), "no event was lost")
        expect("xprtrdma_" in read(f"{TRACING}/trace"), "no events")
        wait_for(lambda: use_count() == 0, 20, f"use count 0, it is {use_count()}")
        run("rmmod", MODULE)
        # What is in the buffer cannot be told any more; looking at it must do no harm.
        expect("xprtrdma_mr_map:" not in read(f"{TRACING}/trace"), "events of a module that is gone")
        expect(not os.path.exists(f"{TRACING}/events/rpcrdma"), "events are there still")
        run("load-transport")
        equal(read(f"{TRACING}/events/rpcrdma/enable").strip(), "0", "events afterwards")
    finally:
        shell(run, f"cd {TRACING}; [ ! -e events/rpcrdma ] || echo 0 >events/rpcrdma/enable; "
              "echo >trace; echo 1 >buffer_size_kb")
with check("rmmod at the end, nothing left"):
    run("rmmod", MODULE)
    gone("at the end")
# Before the C module comes, which says the same.
own = run("dmesg")
# Before there is no memory on purpose, of which the kernel complains.
complaints = []


def complain():
    return run("dmesg", "--level=emerg,alert,crit,err").splitlines()


if MODULE == "rpcrdma_rust":
    PROBES = (
        "f:probe_device ib_register_client name=client->name:string",
        "f:probe_sysctls register_sysctl_sz name=path:string",
        "f:probe_server svc_reg_xprt_class name=xcl->xcl_name:string",
        "f:probe_client xprt_register_transport name=transport->name:string",
        "f:probe_no_device ib_unregister_client name=client->name:string",
        "f:probe_no_sysctls unregister_sysctl_table",
        "f:probe_no_server svc_unreg_xprt_class name=xcl->xcl_name:string",
        "f:probe_no_client xprt_unregister_transport name=transport->name:string")
    with check("what is made known, in which order, and the other way round at the end"):
        with probes(run, *PROBES) as events:
            run("load-transport")
            run("rmmod", MODULE)
        seen = []
        for e in events:
            found = re.search(r'name="(.*?)"', e.text)
            seen.append((e.name[len("probe_"):], found.group(1) if found else ""))
        equal(seen, [("device", MODULE), ("sysctls", "sunrpc/svc_rdma"), ("server", "rdma"),
                     ("client", "rdma"), ("client", "rdma backchannel"), ("sysctls", "sunrpc"),
                     ("no_sysctls", ""), ("no_client", "rdma"), ("no_client", "rdma backchannel"),
                     ("no_server", "rdma"), ("no_sysctls", ""), ("no_device", MODULE)], "order")
    with check("without the server's tunables it does not load; without the client's it does"):
        if not os.path.exists(SHIM):
            expect(SLOWNESS > 1, f"{SHIM} is not there")
            raise Skip("tests/shim is not built for this kernel")
        shell(run, f"insmod {SHIM} device={RDMA}0")
        try:
            fail(run, "sysctl", 0)
            status, text = run("load-transport", ok=False)
            equal(counts(run, "sysctl")[1], 1, "tables that were refused")
            expect(status and "Cannot allocate memory" in text, f"status {status}: {text}")
            gone("after a load that failed")
            fail(run, "sysctl", 1)
            run("load-transport")
            equal(counts(run, "sysctl"), (2, 1), "tables, and those that were refused")
            equal(sysctls(), ["svc_rdma"], "sysctls")
            # In one guest there is no server now.
            if NODES > 1:
                with mounted("4.2") as at:
                    os.listdir(at)
            wait_for(lambda: use_count() == 0, 20, f"use count 0, it is {use_count()}")
            run("rmmod", MODULE)
            gone("without tunables of the client")
        finally:
            run("rmmod", "shim")
    with check("each allocation of its start fails once: it loads without, or leaves nothing", 600):
        if not all(map(os.path.exists, STARVED)):
            without_checkers("failslab or fail_page_alloc")
        complaints = complain()
        failed, lost = starved_loads()
        run("dmesg", "-C")
        say(f"{failed} allocations failed, {lost} times it was not loaded")
        expect(lost >= 20, "hardly any mattered")
    with check("beside the C module it does not load, and leaves nothing"):
        run("modprobe", "--ignore-install", "rpcrdma")
        try:
            status, text = run("load-transport", ok=False)
            expect(status, "it was loaded")
            say(text)
            expect(MODULE not in modules(), "it is there")
        finally:
            run("rmmod", "rpcrdma")
        gone("after a load that failed")
        run("load-transport")
        run("rmmod", MODULE)
        gone("after a load that did not")
with check("the kernel log tells of both transports, when they come and when they go"):
    for word in ("Registered", "Unregistered"):
        for kind in ("rdma", "rdma backchannel"):
            line = f"RPC: {word} {kind} transport module."
            expect(line in own, f"no line: {line}")
with check("the kernel has not complained"):
    # rxe says so when it gives up on a peer whose cable was pulled.
    # The name of what both modules have is taken. KUnit tests have a device of their own.
    known = re.compile(r"rxe0: qp#\d+ make_send_cqe: non-flush error status = 12$|rpcrdma_rust: device fake0: |"
                       r"sysctl duplicate entry: /sunrpc/svc_rdma")
    equal([l for l in complaints + complain() if not known.search(l)], [], "messages of level err and above")
run("load-transport")
if NODES == 1:
    on_server("nfsd-up")
done()
