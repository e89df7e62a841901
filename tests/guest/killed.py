# SPDX-License-Identifier: GPL-2.0
"""A client that vanishes in the middle of transfers leaves nothing on the server after a minute.

This runs on the server; it has the client guest's QEMU killed, so it needs its own start of the machines.
"""

import time

from account import objects
from lib import *

# Both directions, all the time, on several connections.
WORK = """
mkdir -p /mnt/VERS
mount -t nfs -o OPTIONS,nconnect=2 SERVER /mnt/VERS || exit
dd if=/dev/zero of=/mnt/VERS/r.VERS bs=1M count=8 oflag=direct 2>/dev/null || exit
for n in 1 2; do
    nohup sh -c "while dd if=/dev/zero of=/mnt/VERS/w.VERS.$n bs=1M count=8 oflag=direct; do :; done" \\
        >/dev/null 2>&1 &
    nohup sh -c "while dd if=/mnt/VERS/r.VERS of=/dev/null bs=1M iflag=direct; do :; done" \\
        >/dev/null 2>&1 &
done
"""


def counted():
    """Messages that came, RDMA Reads and RDMA Writes; sysctls of the transport."""
    return [int(read(f"/proc/sys/sunrpc/svc_rdma/rdma_stat_{name}").split()[0]) for name in ("recv", "read", "write")]


with check("a client is at work, and vanishes", 300):
    if NODES == 1 or not ON_SERVER:
        raise Skip("the client has to be another guest than the one of this test")
    before, base = objects(), use_count()
    say(f"before: {before}, use count {base}")
    for vers in ("3", "4.2"):
        on_client(WORK.replace("VERS", vers).replace("OPTIONS", options(vers))
                  .replace("SERVER", f"{SERVER}:{EXPORT}"))
    wait_for(lambda: objects()["qp"] >= before["qp"] + 4, 60, "four connections more")
    begin = counted()
    wait_for(lambda: all(now > then + 50 for now, then in zip(counted(), begin)), 60, "calls both ways")
    say(f"messages, Reads and Writes: {[now - then for now, then in zip(counted(), begin)]}")
    say(f"in the middle: {objects()}, use count {use_count()}")
    run("on-host", "kill client")
    begun = time.monotonic()
    try:
        wait_for(lambda: objects() == before and use_count() == base, 60,
                 "RDMA objects and use count are where they were")
    finally:
        say(f"{time.monotonic() - begun:.0f} s after the end: {objects()}, use count {use_count()}")
with check("the server serves others"), mounted("4.2") as at:
    write_file(f"{at}/after", b"after", direct=True)
    equal(read(f"{EXPORT}/after"), "after", "content on the server")
    os.unlink(f"{at}/after")
done()
