# SPDX-License-Identifier: GPL-2.0
"""Allocations below the transport's code fail, one at a time: errors, but no harm, and it works after.

Needs a kernel with CONFIG_FAILSLAB and its filter for stack traces: that of `make debug`. An allocation
counts if the module's code is on the stack, so those that the RDMA core makes for it do, too.
Which one fails: the first, second, third, fifth, eighth and so on; with LONG, one after the other.
"""

import os
import time

from lib import *

FAIL = "/sys/kernel/debug/failslab"
SIZE = 160 << 10


class Walk:
    """One allocation after the other below the module's code on one side."""

    # How many allocations each side's kernel has counted so far: a multiple of the interval fails.
    count = {"client": 0, "server": 0}

    def __init__(self, side):
        if side == "server":
            self.shell = on_server
        else:
            self.shell = on_client if ON_SERVER else lambda c: run("sh", "-c", c)
        self.side = side
        settings = {"probability": 0, "task-filter": "N", "ignore-gfp-wait": "N", "cache-filter": "N",
                    "verbose": 1, "space": 0, "stacktrace-depth": 32, "times": 0, "interval": 1000000}
        self.shell("; ".join(f"echo {value} >{FAIL}/{name}" for name, value in settings.items()))
        # Where the module's code lies; its symbols tell how far it goes.
        names = self.shell("grep \"[[]$MODULE\"] /proc/kallsyms").splitlines()
        code = sorted(int(line.split()[0], 16) for line in names if line.split()[1] in "tT")
        self.shell(f"echo {code[0]:#x} >{FAIL}/require-start; echo {code[-1] + 4096:#x} >{FAIL}/require-end")

    def arm(self, number):
        """The allocation with this number from now on is to fail, that one only."""
        self.interval = self.count[self.side] + number
        self.resume()

    def resume(self):
        self.shell(f"echo {self.interval} >{FAIL}/interval; echo 1 >{FAIL}/times; "
                   f"echo 100 >{FAIL}/probability")

    def stop(self):
        """No allocation is to fail from now on. Has it failed?"""
        left = self.shell(f"echo 0 >{FAIL}/probability; cat {FAIL}/times").strip()
        if left == "0" and self.interval > 1:
            self.count[self.side] = self.interval
        return left == "0"


def numbers():
    """Which allocations are to fail, the first being 1."""
    one, two = 1, 1 if LONG else 2
    while True:
        yield one
        one, two = (one + 1, 0) if LONG else (two, one + two)


def use(at, number):
    """Work that needs all kinds of messages; what is read back must be what was written."""
    data = random_bytes(SIZE, number)
    path = f"{at}/failslab/f"
    write_file(path, data, direct=number % 2 == 0)
    expect(read_file(path, direct=True) == data, "data differ")
    os.listdir(f"{at}/failslab")


def attempt(vers, number):
    """Mount, use and unmount, or an error: which?"""
    at = "/mnt/a"
    os.makedirs(at, exist_ok=True)
    status, text = run("mount", "-t", "nfs", "-o", options(vers) + ",retry=0", f"{SERVER}:{EXPORT}", at,
                       ok=False, timeout=90)
    if status:
        return text.strip().splitlines()[-1]
    try:
        use(at, number)
    except OSError as error:
        return f"error {error}"
    finally:
        umount(at)
    return None


def walk(side, work):
    """work(number) with one allocation failing, until there are no more; how many, and the errors."""
    steps = Walk(side)
    errors = []
    for failed, number in enumerate(numbers()):
        steps.arm(number)
        try:
            error = work(number)
        finally:
            fired = steps.stop()
        if error:
            errors.append(f"{number}: {error}")
        if not fired:
            break
        # With that allocation there, all is as it was.
        if error:
            equal(work(number + 1), None, f"error after allocation {number} failed once")
    # The kernel's count has to be known for the next walk.
    for again in range(20):
        steps.resume()
        work(again)
        if steps.stop():
            break
    else:
        raise Failed("no allocation fails any more")
    say(f"{failed} allocations failed, fewer than {number} are made; {len(errors)} times with an error")
    for text in errors[:20]:
        say(text)
    expect(failed >= 5, "hardly any allocation failed")
    return errors


def reconnect(at):
    """Work on a mount whose connection breaks in the middle of it."""
    def work(number):
        before = xprt_stats(at)["connect_count"]
        for name, value in {"ignore-client-disconnect": "N", "ignore-server-disconnect": "Y",
                            "ignore-cache-wait": "Y", "verbose": 0, "interval": 1, "times": 1,
                            "probability": 100}.items():
            write(f"/sys/kernel/debug/fail_sunrpc/{name}", str(value))
        try:
            use(at, number)
        except OSError as error:
            return str(error)
        finally:
            write("/sys/kernel/debug/fail_sunrpc/probability", "0")
        expect(xprt_stats(at)["connect_count"] > before, "the connection was not broken")
    return work


if not os.path.isdir(FAIL):
    with check("allocations fail"):
        raise Skip("the kernel has no failslab")
else:
    with server_folder("failslab"):
        for vers in ("3", "4.2"):
            with check(f"v{vers}: mount, work and unmount while allocations of the client fail", 900):
                walk("client", lambda number: attempt(vers, number))
        with check("v4.2: mount, work and unmount while allocations of the server fail", 900):
            walk("server", lambda number: attempt("4.2", number))
        with mounted("4.2") as at:
            for side in ("client", "server"):
                with check(f"v4.2: a broken connection, and allocations of the {side} fail", 900):
                    # A hard mount shows no error, but waits and tries again.
                    equal(walk(side, reconnect(at)), [], "errors")
done()
