# SPDX-License-Identifier: GPL-2.0
"""How attempts to connect end, by each event of the connection manager and by silence; and that the loss
of a connection is told once.

tests/shim turns one event into another: soft devices on a link that works do not make all of them.
"""

import concurrent.futures
import errno
import threading

from lib import *
from shim import *

ADDR_RESOLVED, ADDR_ERROR, ROUTE_RESOLVED, ROUTE_ERROR = range(4)
CONNECT_ERROR, UNREACHABLE, REJECTED, ESTABLISHED = range(6, 10)
ADDR_CHANGE = 14
JOBS = 8
# It is of no interest to somebody who connects.
IGNORED = 15
STALE, CONSUMER = 10, 28
# What would come, what comes, its status, how the attempt ends, how many seconds it takes.
ENDINGS = {
    "an error of the address": (ADDR_RESOLVED, ADDR_ERROR, -110, errno.EPROTO, 0),
    "an error of the route": (ROUTE_RESOLVED, ROUTE_ERROR, -110, errno.EHOSTUNREACH, 0),
    "an error of the connection": (ESTABLISHED, CONNECT_ERROR, -110, errno.ENOTCONN, 0),
    "a server that cannot be reached": (ESTABLISHED, UNREACHABLE, -110, errno.EHOSTUNREACH, 0),
    "a server that knows an older connection": (ESTABLISHED, REJECTED, STALE, errno.ENOTCONN, 0),
    "a server that refuses": (ESTABLISHED, REJECTED, CONSUMER, errno.ECONNREFUSED, 0),
    "a change of our address": (ESTABLISHED, ADDR_CHANGE, 0, errno.ENOTCONN, 0),
    "no word of the address": (ADDR_RESOLVED, IGNORED, 0, errno.ETIMEDOUT, 5),
    "no word of the route": (ROUTE_RESOLVED, IGNORED, 0, errno.ETIMEDOUT, 5),
    "no word of the server": (ESTABLISHED, IGNORED, 0, errno.EHOSTUNREACH, 30),
}


def attempts(events):
    """(result, seconds) of each attempt."""
    found = []
    for e in events:
        if e.name == "xprtrdma_op_connect":
            # Asked for; put off by so many jiffies.
            begun = e.seconds + number(e.text, "delay") / HZ
        elif e.name == "xprtrdma_connect":
            found.append((number(e.text, "rc"), e.seconds - begun))
    return found


def ends(at, instead, wanted, seconds):
    before = xprt_stats(at)["connect_count"]
    with traced(run) as events:
        shim_set(run, "cm_event", f"'{' '.join(map(str, instead))} 1'")
        lose()
        os.statvfs(at)
    equal(shell(run, f"cat {PARAMETERS}/cm_event").strip(), "0", "events to come")
    found = attempts(events)
    say(", ".join(f"{rc} after {took:.2f} s" for rc, took in found))
    equal([rc for rc, _ in found], [-wanted, 0], "how attempts ended")
    took = found[0][1]
    # Those of 0, 5 and 30 seconds are to be told apart (on the stock kernel), on a machine with other work.
    expect(seconds <= took < seconds + 4.5 * SLOWNESS, f"the first one took {took} s")
    equal(xprt_stats(at)["connect_count"] - before, 1, "connections that were made")


def lost_once(at):
    """All Receives are flushed, and say that the connection is lost; so does the end of the others."""
    before = xprt_stats(at)["connect_count"]
    with traced(run, "sunrpc/xprt_disconnect_force") as events:
        shim_set(run, "error", 1)
        wait_for(lambda: xprt_stats(at)["connect_count"] > before or not os.statvfs(at), 20,
                 "another connection")
    flushed = [t for t in of(events, "xprtrdma_wc_receive") if "(0/0x0)" not in t]
    say(f"{len(flushed)} messages were flushed")
    expect(len(flushed) > 100, "hardly any Receive was flushed")
    equal(len(of(events, "xprt_disconnect_force")), 1, "how often the loss was told")


def expired():
    """There is no server for longer than calls wait for a reply; then there is. They would be over at once, and a
    connection with them."""
    with mounted("3", f"noac,timeo={50 * SLOWNESS},retrans=1") as at, \
            concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        stop, done_ = threading.Event(), [0] * JOBS

        def writes(n):
            while not stop.is_set():
                write_file(f"{at}/expired-{n}", bytes(65536), direct=True)
                done_[n] += 1

        def all_go_on():
            seen = list(done_)
            wait_for(lambda: all(now > then + 1 for now, then in zip(done_, seen)), 90, "all jobs go on")

        jobs = [pool.submit(writes, n) for n in range(JOBS)]
        try:
            all_go_on()
            before = xprt_stats(at)["connect_count"]
            on_server("nfsd-down")
            time.sleep(30 * SLOWNESS)
            on_server("nfsd-up")
            begun = time.monotonic()
            all_go_on()
            took = time.monotonic() - begun
            all_go_on()
            connections = xprt_stats(at)["connect_count"] - before
            say(f"all went on after {took:.1f} s, {connections} connections were made")
            equal(connections, 1, "connections made")
        finally:
            stop.set()
            for job in jobs:
                job.result(60 * SLOWNESS)
            on_server(f"rm -f {EXPORT}/expired-*")


with check("calls whose time was over when a connection was made do not end it", 300):
    expired()
with shim(run), mounted("3", "noac") as at:
    for name, (event, *instead, wanted, seconds) in ENDINGS.items():
        with check(f"an attempt ends by {name}: an error, and another attempt", 240), \
                nothing_left(run, "what is in use", regions=False):
            ends(at, (event, *instead), wanted, seconds)
    with check("a connection whose messages are all flushed: its loss is told once"):
        lost_once(at)
    with check("nobody has the server's address: an error, soon"):
        os.makedirs("/mnt/b", exist_ok=True)
        with traced(run) as events:
            status, text = run("mount", "-t", "nfs", "-o", options("4.2") + ",retry=0",
                               f"10.0.0.99:{EXPORT}", "/mnt/b", ok=False, timeout=90)
        found = attempts(events)
        say(f"{text.strip()}: {found}")
        expect(status, "it is mounted")
        expect(found and all(rc == -errno.EPROTO and took < 10 * SLOWNESS for rc, took in found),
               "attempts ended otherwise")
done()
