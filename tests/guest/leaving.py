# SPDX-License-Identifier: GPL-2.0
"""The module of one side goes, and comes back: for tests in which that is a part of what happens; not a test."""

from lib import *

# Within this time nfsd ends, and a module goes that nobody uses.
UNLOAD = 5
SIDES = {"client": lambda text: run("sh", "-c", text), "server": on_server}


def timed(command, text):
    """Run commands on one side; how long it took there. (A busy server takes seconds until it begins.)"""
    words = command(f"read begun rest </proc/uptime; {text}\n"
                    "read end rest </proc/uptime; echo $begun $end").split()
    return float(words[-1]) - float(words[-2])


def leave(where):
    """The module can go soon after the last mount, or the last listener; how soon it was gone.

    At the server that is from when nfsd is told to end: its threads, and the ends of its connections, are a part.
    """
    command = SIDES[where]
    module = command("lsmod | grep -o '^rpcrdma[^ ]*'").strip()
    nfsd = timed(command, "nfsd-down") if where == "server" else 0
    count = f"grep -qx 0 /sys/module/{module}/refcnt"
    took = timed(command, f"for n in $(seq {20 * UNLOAD * SLOWNESS}); do {count} && break; sleep 0.1; done; "
                          f"{count} || {{ lsmod; rdma resource; exit 1; }}; rmmod {module} || exit")
    left = command("for kind in pd cq mr cm_id; do rdma resource show $kind; done")
    equal([line for line in left.splitlines() if f"[{module}]" in line], [], "RDMA objects")
    if nfsd:
        say(f"nfsd ended in {nfsd:.1f} s, the module after {took:.1f} s")
    expect(nfsd < UNLOAD * SLOWNESS, f"nfsd ended in {nfsd:.1f} s")
    return took


def come_back(where):
    SIDES[where]("load-transport")
    if where == "server":
        on_server("nfsd-up")
