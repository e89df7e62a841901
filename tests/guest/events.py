# SPDX-License-Identifier: GPL-2.0
"""Tracepoints and messages of the kernel, on this machine (`run`) or on the server (`on_server`)."""

import collections
import contextlib
import os
import re

from lib import *

TRACING = "/sys/kernel/tracing"


def shell(side, command, timeout=120):
    if side is run:
        return run("sh", "-c", command, timeout=timeout)
    return on_server(command, timeout=timeout)


Event = collections.namedtuple("Event", "seconds name text")


def parse(text):
    """Events of a trace, in their order."""
    names = (r"(?:xprtrdma|svcrdma|rpcrdma|probe)_\w+|xprt_transmit|xprt_lookup_rqst|"
             r"xprt_disconnect_force|rpc_stats_latency|svc_send|svc_xdr_recvfrom|cq_poll|swiotlb_bounced|(?:un)?map")
    found = re.findall(rf"(?m)^.*? (\d+\.\d+): ({names}): +(.*)$", text)
    return [Event(float(seconds), *rest) for seconds, *rest in found]


def of(events, *names):
    return [e.text for e in events if e.name in names]


def number(text, field):
    found = re.search(rf"(?:^|[ ,]){re.escape(field)}[= ](0x[0-9a-f]+|-?\d+)", text)
    expect(found, f"no {field} in {text!r}")
    return int(found.group(1), 0)


def xids(texts):
    return sorted(number(t, "xid") for t in texts)


def cids(texts):
    """(completion queue, number) of work requests: how often each comes."""
    return collections.Counter((number(t, "cq.id"), number(t, "cid")) for t in texts)


def task(text):
    return text.split()[0]


def shown(events, wanted):
    """Each of these events came as often, and in order says what it should: {name: [pattern, ...]}."""
    for name, patterns in wanted.items():
        texts = of(events, name)
        equal(len(texts), len(patterns), f"how often {name} came, first {texts[:3]}")
        for text, pattern in zip(texts, patterns):
            expect(re.search(pattern, text), f"{name}: {text!r} instead of {pattern!r}")


@contextlib.contextmanager
def shows(side, wanted, *more):
    """The body makes these events, as of shown(), if our module is on that side."""
    with traced(side, *more) as events:
        yield events
    if os.environ["CLIENT" if side is run else "SERVER_FLAVOUR"] == "rust":
        shown(events, wanted)


@contextlib.contextmanager
def traced(side, *more, only=None):
    """A list, which has the events of the body afterwards: all of the transport, or `only` some."""
    events = []
    own = [f"rpcrdma/{name}" for name in only] if only else ["rpcrdma"]
    on = [f"{TRACING}/events/{e}/enable" for e in (*own, *more)]
    enable = [f"echo 1 >{f}" for f in on]
    if not only:
        # The module may be one that is loaded in the body; all others have to be there.
        enable[0] = f"[ ! -e {on[0]} ] || {enable[0]}"
    shell(side, f"set -e; cd {TRACING}; echo 0 >tracing_on; echo >trace; echo 16384 >buffer_size_kb; "
          + "; ".join(enable) + "; echo 1 >tracing_on")
    try:
        yield events
    finally:
        text = shell(side, f"cd {TRACING}; echo 0 >tracing_on; "
                     + "; ".join(f"echo 0 >{f}" for f in on)
                     + "; grep -H overrun per_cpu/*/stats; cat trace; "
                     "echo >trace; echo 1 >buffer_size_kb; echo 1 >tracing_on")
        events += parse(text)
    lost = re.findall(r"(?m)^per_cpu/.*overrun: [1-9]\d*$", text)
    expect(not lost, f"events were lost: {lost}")


@contextlib.contextmanager
def probes(side, *definitions):
    """Events of the test's own, as dynamic_events takes them; a list, as of traced().

    Their names begin with probe_. Functions of modules need to be there.
    """
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        expect(SLOWNESS > 1, "the stock kernel knows its own types")
        raise Skip("the kernel does not know its own types")
    groups = {"p": "kprobes", "r": "kprobes", "f": "fprobes"}
    names = [re.match(r"([prf])\d*:(probe_\w+) ", d).groups() for d in definitions]
    try:
        for definition in definitions:
            shell(side, f"echo '{definition}' >>{TRACING}/dynamic_events || "
                        f"{{ tail -4 {TRACING}/error_log; exit 1; }}")
        with traced(side, *(f"{groups[kind]}/{name}" for kind, name in names)) as events:
            yield events
    finally:
        shell(side, "; ".join(f"[ ! -e {TRACING}/events/{groups[kind]}/{name} ] || "
                              f"echo '-:{groups[kind]}/{name}' >>{TRACING}/dynamic_events"
                              for kind, name in names))


def log(side, mark=None):
    """What the module has said, since the mark if one is given. (Lines may be gone: there is room for so many.)"""
    text = shell(side, "dmesg")
    if mark:
        _, found, text = text.rpartition(mark)
        expect(found, "the mark is not in the log any more")
    return [l for l in text.splitlines() if " rpcrdma_rust: " in l]


_marks = iter(range(1 << 30))


def mark_log(side):
    """A mark in the log, for log()."""
    mark = f"test: mark {os.getpid()}.{next(_marks)}."
    shell(side, f"echo '{mark}' >/dev/kmsg")
    return mark


for side in (run, on_server):
    shell(side, f"mountpoint -q {TRACING} || mount -t tracefs none {TRACING}")
