# SPDX-License-Identifier: GPL-2.0
"""Tracepoints and messages of the kernel, on this machine (`run`) or on the server (`on_server`)."""

import collections
import contextlib
import re

from lib import *

TRACING = "/sys/kernel/tracing"


def shell(side, command, timeout=120):
    if side is run:
        return run("sh", "-c", command, timeout=timeout)
    return on_server(command, timeout=timeout)


Event = collections.namedtuple("Event", "name text")


def parse(text):
    """Events of a trace, in their order."""
    names = r"(?:xprtrdma|svcrdma|rpcrdma)_\w+|xprt_transmit|xprt_lookup_rqst|svc_send|cq_poll"
    found = re.findall(rf"(?m)^.*?\d+\.\d+: ({names}): +(.*)$", text)
    return [Event(*f) for f in found]


def of(events, *names):
    return [e.text for e in events if e.name in names]


def number(text, field):
    found = re.search(rf"(?:^|[ ,]){re.escape(field)}[= ](0x[0-9a-f]+|-?\d+)", text)
    expect(found, f"no {field} in {text!r}")
    return int(found.group(1), 0)


def xids(texts):
    return sorted(number(t, "xid") for t in texts)


@contextlib.contextmanager
def traced(side, *more):
    """A list, which has the events of the body afterwards."""
    events = []
    on = [f"{TRACING}/events/{e}/enable" for e in ("rpcrdma", *more)]
    shell(side, f"cd {TRACING}; echo 0 >tracing_on; echo >trace; echo 16384 >buffer_size_kb; "
          + "; ".join(f"echo 1 >{f}" for f in on) + "; echo 1 >tracing_on")
    try:
        yield events
    finally:
        text = shell(side, f"cd {TRACING}; echo 0 >tracing_on; "
                     + "; ".join(f"echo 0 >{f}" for f in on)
                     + "; cat trace; echo >trace; echo 1 >buffer_size_kb; echo 1 >tracing_on")
        events += parse(text)


def log(side):
    return [l for l in shell(side, "dmesg").splitlines() if " rpcrdma_rust: " in l]


for side in (run, on_server):
    shell(side, f"mountpoint -q {TRACING} || mount -t tracefs none {TRACING}")
