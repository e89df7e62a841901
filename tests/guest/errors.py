# SPDX-License-Identifier: GPL-2.0
"""Mounts that cannot work end with an error, soon, and leave nothing behind."""

import concurrent.futures
import os
import subprocess
import time

from lib import *


def try_mount(vers, limit, server=SERVER, extra="", at="/mnt/a", opts=None):
    """Status of a mount that is to end by itself within `limit` seconds."""
    os.makedirs(at, exist_ok=True)
    begun = time.monotonic()
    status, text = run("mount", "-t", "nfs", "-o", (opts or options(vers)) + ",retry=0" + extra,
                       f"{server}:{EXPORT}", at, ok=False, timeout=limit)
    say(f"v{vers}: status {status} after {time.monotonic() - begun:.1f} s: {text.strip()}")
    return status


def refused(vers, limit, opts=None):
    base = use_count()
    equal(try_mount(vers, limit, opts=opts), 32, "status of mount")
    equal(nfs_mounts(), [], "NFS mounts")
    wait_for(lambda: use_count() == base, 30, f"use count back at {base}, not {use_count()}")


for vers in ("3", "4.2"):
    with check(f"v{vers}: closed port", 240):
        refused(vers, 200, opts=options(vers).replace(f"port={PORT}", "port=20050"))
    with check(f"v{vers}: port where only TCP listens", 240):
        refused(vers, 200, opts=options(vers).replace(f"port={PORT}", "port=2049"))

# The C client takes 156 s for these, so both go at once.
with check("v3 and v4.2: address that nobody has", 300):
    base = use_count()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        # The mount protocol of v3 goes through TCP and would fail first: name the server for it.
        jobs = [pool.submit(try_mount, "3", 250, "10.0.0.77", f",mountaddr={SERVER}", "/mnt/a"),
                pool.submit(try_mount, "4.2", 250, "10.0.0.77", "", "/mnt/b")]
        for job in jobs:
            equal(job.result(), 32, "status of mount")
    equal(nfs_mounts(), [], "NFS mounts")
    wait_for(lambda: use_count() == base, 30, f"use count back at {base}, not {use_count()}")

# The attempt to connect has half a minute; who asked for it is gone long before. The C module lets
# it run out.
with check("v4.2: killed mount, server that does not answer"):
    if RDMA == "siw":
        raise Skip("siw goes on until TCP gives up: Documentation/upstream-findings.md")
    base = use_count()
    os.makedirs("/mnt/a", exist_ok=True)
    on_server("nft add table inet mute; nft add chain inet mute in '{ type filter hook input "
              "priority 0; }'; nft add rule inet mute in udp dport 4791 drop")
    try:
        child = subprocess.Popen(["mount", "-t", "nfs", "-o", options("4.2"), f"{SERVER}:{EXPORT}",
                                  "/mnt/a"])
        wait_for(lambda: use_count() > base, 10, "an attempt to connect")
        time.sleep(2)
        expect(child.poll() is None, "the mount has ended")
        run("pkill", "-KILL", "mount")
        child.wait(5 * SLOWNESS)
        begun = time.monotonic()
        limit = 10 if MODULE == "rpcrdma_rust" else 90
        wait_for(lambda: use_count() == base, limit, f"use count back at {base}, not {use_count()}")
        say(f"idle {time.monotonic() - begun:.1f} s after the mount was killed")
    finally:
        on_server("nft delete table inet mute")

on_server("nfsd-down; nfsd-up tcp-only")
for vers in ("3", "4.2"):
    with check(f"v{vers}: server without RDMA", 240):
        expect("rdma" not in on_server("cat /proc/fs/nfsd/portlist"), "the server listens on RDMA")
        refused(vers, 200)
    with check(f"v{vers}: TCP still works there"):
        mount(vers, opts=f"vers={vers},proto=tcp,nolock" if vers == "3" else f"vers={vers},proto=tcp")
        umount()
on_server("nfsd-down; nfsd-up")
with check("the next good mount works"), mounted("4.2") as at:
    write_file(f"{at}/good", b"good")
    equal(on_server(f"cat {EXPORT}/good; rm {EXPORT}/good"), "good", "content on the server")
done()
