# SPDX-License-Identifier: GPL-2.0
"""Connections that sunrpc breaks on purpose (its fail_sunrpc): data arrive, and the mount goes on.

Needs a kernel with CONFIG_FAIL_SUNRPC: that of `make debug`.
"""

import contextlib
import os

from events import *
from lib import *

FAIL = "/sys/kernel/debug/fail_sunrpc"
SIZE = 256 << 10
# The client is where the tests are, unless these run on the server.
CLIENT_OURS = os.environ["CLIENT"] == "rust" and not ON_SERVER
ROUNDS = 24 if LONG else 8


@contextlib.contextmanager
def breaking(side, every):
    """One of `every` messages of the client, or calls at the server, breaks its connection."""
    shell = on_server if side == "server" else on_client if ON_SERVER else lambda c: run("sh", "-c", c)
    settings = {"ignore-client-disconnect": "NY"[side == "server"],
                "ignore-server-disconnect": "NY"[side == "client"], "ignore-cache-wait": "Y",
                "verbose": 0, "interval": every, "times": -1, "space": 0, "probability": 100}
    shell("; ".join(f"echo {value} >{FAIL}/{name}" for name, value in settings.items()))
    try:
        yield
    finally:
        shell(f"echo 0 >{FAIL}/probability")


def copy(at, number):
    """Write a file over, and read back what the server has."""
    data = random_bytes(SIZE, number)
    path = f"{at}/injected/{number % 4}"
    write_file(path, data, direct=number % 2 == 0, block=64 << 10)
    os.utime(path, (number, number))
    expect(read_file(path, direct=True, block=64 << 10) == data, f"round {number}: data differ")
    equal(os.stat(path).st_mtime, number, "time of the file")


def through(vers, side, every):
    with server_folder("injected") as folder, mounted(vers) as at:
        for number in range(4):
            copy(at, number)
        before = xprt_stats(at)["connect_count"]
        told = ["xprtrdma_op_inject_dsc", "xprtrdma_connect"]
        with traced(run, only=told) if CLIENT_OURS else contextlib.nullcontext() as events, \
                breaking(side, every):
            for number in range(ROUNDS):
                copy(at, number)
        made = xprt_stats(at)["connect_count"] - before
        say(f"{made} connections")
        if events is not None:
            texts = of(events, told[0])
            say(f"{told[0]}: {len(texts)} times")
            # Of a connection that is lost already there may be more than one.
            expect(len(texts) >= made if side == "client" else not texts, f"{told[0]}: {len(texts)} times")
            equal(set(texts) - {f"peer=[{SERVER}]:{PORT}"}, set(), f"what {told[0]} tells")
        expect(made >= 2, "the connection was not broken")
        # Whatever was broken last is whole again, and stays so.
        copy(at, ROUNDS)
        before = xprt_stats(at)["connect_count"]
        for number in range(4):
            copy(at, number)
        equal(xprt_stats(at)["connect_count"], before, "connections, with nothing to break them")
        sums = server_sums(folder)
        for number in range(4):
            equal(sums[str(number)], sha(random_bytes(SIZE, number)), f"what the server has of {number}")


if not os.path.isdir(FAIL):
    for side in ("client", "server"):
        with check(f"sunrpc breaks the connection at the {side}"):
            raise Skip("the kernel has no fail_sunrpc")
else:
    for vers in VERSIONS:
        for side, every in (("client", 40), ("server", 25)):
            with check(f"v{vers}: sunrpc breaks the connection at the {side}", 300):
                through(vers, side, every)
done()
