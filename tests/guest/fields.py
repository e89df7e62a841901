# SPDX-License-Identifier: GPL-2.0
"""What a transport tells sunrpc of itself: times, limits and functions, as sunrpc finds them."""

from events import *
from lib import *

MINUTE = 60 * HZ
# Row C25.
FUNCTIONS = (
    "reserve_xprt release_xprt alloc_slot free_slot rpcbind set_port connect buf_alloc buf_free "
    "send_request wait_for_reply_request timer release_request close destroy set_connect_timeout "
    "print_stats enable_swap disable_swap inject_disconnect bc_setup bc_maxpayload bc_num_slots "
    "bc_free_rqst bc_destroy").split()
NONE = "set_buffer_size get_srcaddr get_srcport prepare_request abort_send_request".split()
NUMBERS = {
    "bind": "bind_timeout", "connect": "connect_timeout", "reconnect": "max_reconnect_timeout",
    "idle": "idle_timeout", "first": "timeout->to_initval", "most": "timeout->to_maxval",
    "more": "timeout->to_increment", "retries": "timeout->to_retries", "slots": "max_reqs",
    "least": "min_reqs", "prot": "prot", "payload": "max_payload",
}


def look(at):
    """Numbers and functions of the mount's transport."""
    fields = [f"{name}=xprt->{field}" for name, field in NUMBERS.items()]
    fields += [f"do_{name}=xprt->ops->{name}:x64" for name in FUNCTIONS + NONE]
    # Side protocols have transports of their own.
    fields.append("kind=xprt->xprt_class->ident")
    with probes(run, "f:probe_xprt xprt_reserve_xprt_cong " + " ".join(fields)) as events:
        os.statvfs(at)
    for text in of(events, "probe_xprt"):
        if number(text, "kind") == 256:
            return ({name: number(text, name) for name in NUMBERS},
                    {name: number(text, "do_" + name) for name in FUNCTIONS + NONE})
    raise Failed(f"no RPC by RDMA: {events}")


def known(seen):
    if seen is None:
        raise Skip("see above")


def resolved(at):
    """How long addresses and routes may take, in milliseconds, as the RDMA core is told."""
    with probes(run, "f:probe_addr rdma_resolve_addr ms=timeout_ms",
                "f:probe_route rdma_resolve_route ms=timeout_ms") as events:
        with mounted("3"):
            pass
    return [number(t, "ms") for t in of(events, "probe_addr", "probe_route")]


with mounted("3", "noac") as at:
    seen = None
    with check("functions that there are, and functions that there are not"):
        seen, functions = look(at)
        equal([name for name in FUNCTIONS if not functions[name]], [], "functions that are missing")
        equal([name for name in NONE if functions[name]], [], "functions that should not be there")
    with check("times: a minute for everything, and five for idle connections"):
        known(seen)
        say(seen)
        for name in ("bind", "connect", "reconnect", "first", "most"):
            equal(seen[name], MINUTE, NUMBERS[name])
        equal(seen["idle"], 5 * MINUTE, "idle_timeout")
        for name in ("more", "retries"):
            equal(seen[name], 0, NUMBERS[name])
    with check("slots, payload, and the protocol of what goes beside it"):
        known(seen)
        equal([seen[name] for name in ("slots", "least", "prot", "payload")], [128, 0, 6, 257 << 12],
              "slots, those that sunrpc has, protocol, payload")

with check("a request is completed, and let go of, with the queue locked"), mounted("3", "noac") as at:
    LOCK = "rq_xprt->queue_lock.rlock.raw_lock.locked:u8"
    with probes(run, f"f:probe_complete xprt_complete_rqst locked=task->tk_rqstp->{LOCK}",
                f"f:probe_unpin xprt_unpin_rqst locked=req->{LOCK}") as events:
        for _ in range(20):
            os.statvfs(at)
        write_file(f"{at}/fields", random_bytes(1 << 16), direct=True)
        read_file(f"{at}/fields", direct=True)
    os.unlink(f"{at}/fields")
    for name in ("probe_complete", "probe_unpin"):
        texts = of(events, name)
        expect(len(texts) > 20, f"{name} came {len(texts)} times")
        equal({number(text, "locked") for text in texts}, {1}, f"lock at {name}")

with check("each end of a connection, and each new one, changes the cookie by which sunrpc knows it"), \
        mounted("3", "noac") as at:
    # Rows C110 and L32: sunrpc counts one when it closes, the transport one for the end and one for the next
    # connection.
    fields = "cookie=xprt->connect_cookie kind=xprt->xprt_class->ident"
    with probes(run, f"f:probe_done xprt_disconnect_done {fields}") as events:
        for _ in range(3):
            on_server("nfsd-down; nfsd-up")
            os.statvfs(at)
    cookies = [number(text, "cookie") for text in of(events, "probe_done") if number(text, "kind") == 256]
    equal([new - old for old, new in zip(cookies, cookies[1:])], [3, 3], f"differences of {cookies}")

with check("five seconds for each step of finding the server"):
    equal(resolved("/mnt/b"), [5000, 5000], "milliseconds")


with leases() as last:
    last(40)
    with mounted("4.2", "noac") as at:
        for lease, connect in ((40, 40), (90, 40), (10, 10)):
            with check(f"a lease of {lease} s: times become shorter, not longer"):
                if lease != 40:
                    with traced(run) as events:
                        last(lease)
                        os.statvfs(at)
                    told = of(events, "xprtrdma_op_set_cto")
                    say(told)
                    expect(any(f"connect={lease}" in t for t in told), "the transport was not told")
                seen, _ = look(at)
                say(seen)
                equal(seen["connect"], connect * HZ, "connect_timeout")
                equal(seen["reconnect"], connect // 2 * HZ, "max_reconnect_timeout")
                equal([seen["first"], seen["most"]], [connect * HZ] * 2, "time of calls")
                equal([seen["more"], seen["retries"]], [0, 0], "increment and retries")
                equal(seen["bind"], MINUTE, "bind_timeout")
done()
