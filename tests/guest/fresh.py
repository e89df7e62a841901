# SPDX-License-Identifier: GPL-2.0
"""Calls that are sent the moment a connection is there must not be what ends it.

Many processes of real-time priority run before the worker that has made the connection goes on. A
call of theirs that the worker wakes once more would be sent twice on one connection, which may not be:
the connection would be closed.
"""

import subprocess

from lib import *

TURNS = 60 if LONG else 20
CALLS = """
import os, sys, time
while not os.path.exists("/tmp/enough"):
    os.statvfs(sys.argv[1])
    time.sleep(0.02)
"""


# Calls of NFSv3 alone are encoded again when they are woken without a reply.
for vers in ("3", "4.2") if LONG else ("3",):
    with check(f"v{vers}: {TURNS} connections made under calls of real-time priority", 300), \
            mounted(vers, "noac") as at:
        run("rm", "-f", "/tmp/enough")
        jobs = [subprocess.Popen(["chrt", "-f", "10", sys.executable, "-SE", "-c", CALLS, at])
                for _ in range(4)]
        try:
            found, before = transports(), xprt_stats()
            equal(len(found), 1, "transports")
            path = found[0] + "/dstaddr"
            for turn in range(TURNS):
                count = xprt_stats()["connect_count"]
                # The connection is closed, and made anew.
                write(path, SERVER + "\n")
                wait_for(lambda: xprt_stats()["connect_count"] > count, 60, "another connection")
                time.sleep(0.3)
            after = xprt_stats()
        finally:
            write("/tmp/enough", "")
            statuses = [job.wait(60 * SLOWNESS) for job in jobs]
        equal(statuses, [0] * len(jobs), "how the callers ended")
        say(f"{after['sends'] - before['sends']} calls")
        equal(after["connect_count"] - before["connect_count"], TURNS, "connections made")
done()
