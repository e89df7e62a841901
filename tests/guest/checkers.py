# SPDX-License-Identifier: GPL-2.0
"""What a debug kernel's checkers say at the end, and that they were at work all the time.

    checkers.py          on all machines
    checkers.py here     print what they say on this machine, as JSON

What a checker reports when it sees it ends up on the console, where scripts/vm finds it. Here is asked
what does not come by itself: memory that nothing points to, and whether a checker has given up.
"""

import json
import sys

from lib import *

DEBUG = "/sys/kernel/debug"


def leaks():
    """What kmemleak says nothing points to. It believes that of what two scans have not seen."""
    # What is younger than five seconds is not reported.
    time.sleep(6)
    for _ in range(2):
        write(f"{DEBUG}/kmemleak", "scan")
        time.sleep(1)
    return read(f"{DEBUG}/kmemleak")


def numbers(text):
    return {name: int(value) for name, value in re.findall(r"(?m)^ *([^:\n]+?) *: *(\d+)", text)}


def asks_kasan(path):
    """Whether our module asks before it reads memory. (The others are the kernel's own.)"""
    if not os.path.exists(path):
        return True
    with open(path, "rb") as file:
        return b"__asan_report_load8_noabort" in file.read()


def here():
    locks = numbers(read("/proc/lockdep_stats"))
    objects = numbers(read(f"{DEBUG}/debug_objects/stats"))
    return {
        "leaks": leaks(),
        # The log may have been emptied.
        "kasan": " __asan_store8\n" in read("/proc/kallsyms") and asks_kasan(f"/run/payload/modules/{MODULE}.ko"),
        "lockdep": locks["debug_locks"],
        "dependencies": locks["direct dependencies"],
        "objects": {name: objects[name] for name in ("warnings", "pool_used")},
        "dma off": read(f"{DEBUG}/dma-api/disabled").strip(),
        "dma errors": int(read(f"{DEBUG}/dma-api/error_count")),
        "taint": int(read("/proc/sys/kernel/tainted")),
    }


def everywhere():
    script = "cd /run/payload/tests/guest && python3 checkers.py here"
    found = {"server": json.loads(on_server(script, timeout=400))}
    if NODES == 2 and not ON_SERVER:
        found["client"] = json.loads(on_client(script, timeout=400))
    return found


def judge(name, said):
    with check(f"{name}: KASAN is at work"):
        expect(said["kasan"], "the kernel is built without it, or the module")
    with check(f"{name}: lockdep: no report, and it was live (debug_locks=1 at the end)"):
        say(f"{said['dependencies']} dependencies of locks")
        equal(said["lockdep"], 1, "debug_locks")
        expect(said["dependencies"] > 1000, "lockdep has seen nearly nothing")
    with check(f"{name}: kmemleak finds no memory that nothing points to"):
        expect(not said["leaks"], said["leaks"])
    with check(f"{name}: no object was used when it was not ready"):
        say(f"{said['objects']['pool_used']} objects are watched")
        equal(said["objects"]["warnings"], 0, "warnings of debugobjects")
    with check(f"{name}: DMA mappings are right"):
        equal(said["dma off"], "N", "DMA-API debugging disabled")
        equal(said["dma errors"], 0, "errors")
    with check(f"{name}: the kernel has not warned"):
        # 7: died, 9: warned, 14: soft lockup
        equal(said["taint"] & TAINTS, 0, "taint")


def races():
    """On the kernel that looks for data races: whether it did, on all machines."""
    sides = {"server": on_server}
    if NODES == 2 and not ON_SERVER:
        sides["client"] = on_client
    for name, side in sides.items():
        with check(f"{name}: KCSAN is at work"):
            said = numbers(side(f"cat {DEBUG}/kcsan"))
            say(f"{said['setup_watchpoints']} accesses were watched, {said['data_races']} races were seen")
            equal(said["enabled"], 1, "enabled")
            expect(said["setup_watchpoints"] > 10000, "nearly nothing was watched")


def main():
    if sys.argv[1:] == ["here"]:
        print(json.dumps(here()))
        return
    if os.path.exists(f"{DEBUG}/kcsan"):
        races()
        done()
    if not os.path.exists(f"{DEBUG}/kmemleak"):
        with check("the checkers of a debug kernel"):
            expect(SLOWNESS == 1, "this should be one, and has no kmemleak")
            raise Skip("this is none")
        done()
    for name, said in everywhere().items():
        judge(name, said)
    done()


if __name__ == "__main__":
    main()
