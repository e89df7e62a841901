# SPDX-License-Identifier: GPL-2.0
"""A network device whose address changes: the server's RDMA device is on a bond that fails over.

The client is in a network namespace of the same guest, at the other ends of the bond's two cables.
The listener is bound to the bond's address: one for all addresses has nothing to follow.
"""

import contextlib

from lib import *
from load import Load

NEAR, FAR = "10.2.0.1", "10.2.0.2"


def failover():
    """The bond takes the other device, and its address. The connection manager tells who noticed."""
    path = "/sys/class/net/bond9/bonding/active_slave"
    write(path, "c1" if read(path).strip() == "c0" else "c0")


def noticed():
    return run("dmesg").count("RDMA CM addr change for ndev bond9")


@contextlib.contextmanager
def far():
    """Within the body, this thread, and what it starts, are in the client's namespace."""
    with open("/proc/thread-self/ns/net") as here, open("/run/netns/far") as there:
        os.setns(there.fileno(), os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(here.fileno(), os.CLONE_NEWNET)


def batch(*lines):
    write("/tmp/batch", "\n".join(lines) + "\n")
    run("ip", "-b", "/tmp/batch")


@contextlib.contextmanager
def bond():
    run("modprobe", "bonding", "max_bonds=0")
    try:
        batch("netns add far",
              "link add bond9 type bond mode active-backup fail_over_mac active miimon 100",
              *(f"link add c{n} type veth peer name p{n} netns far" for n in range(2)),
              *(f"link set c{n} master bond9" for n in range(2)),
              f"addr add {NEAR}/24 dev bond9", "link set bond9 up")
        with far():
            # It sends to both, and receives from both.
            batch("link add bond8 type bond mode broadcast miimon 100",
                  *(f"link set p{n} master bond8" for n in range(2)),
                  f"addr add {FAR}/24 dev bond8", "link set bond8 up")
            run("rdma", "link", "add", "far", "type", RDMA, "netdev", "bond8")
        run("rdma", "link", "add", "near", "type", RDMA, "netdev", "bond9")
        run("nfsd-down")
        run("nfsdctl", "listener", "+tcp:0.0.0.0:2049", f"+rdma:{NEAR}:{PORT}")
        run("nfsdctl", "threads", "8")
        yield
    finally:
        for path in nfs_mounts():
            run("umount", "-f", "-l", path, ok=False)
        run("nfsd-down")
        run("nfsd-up")
        run("ip", "netns", "delete", "far", ok=False)
        wait_for(lambda: not os.path.exists("/sys/class/net/c0"), 60, "the namespace has ended")
        run("rmmod", "bonding")


with check("a bond fails over: connection made anew, listener answers", 300), \
        server_folder("bond"), bond():
    with far():
        mount("4.2", server=NEAR)
    with Load("/mnt/a/bond", "bond") as load:
        for turn in range(4):
            load.goes_on(60)
            connects, before = xprt_stats()["connect_count"], noticed()
            failover()
            wait_for(lambda: noticed() >= before + 2, 10, "listener and connection have noticed")
            load.goes_on(60)
            expect(xprt_stats()["connect_count"] > connects, "the connection is the same")
            with far(), mounted("3", at="/mnt/b", server=NEAR) as at:
                write_file(f"{at}/bond/turn", b"turn", direct=False)
    umount()
    away = [line for line in run("dmesg").splitlines() if "is away until" in line]
    if SLOWNESS == 1:
        equal(away, [], "kernel log")
    else:
        # The device's GIDs follow its addresses by a worker. Where that is late, the listener tries again.
        say(f"away for a moment {len(away)} times")
done()
