# SPDX-License-Identifier: GPL-2.0
"""Mounts that cannot work end with an error, soon, and leave nothing behind."""

import time

from lib import *


def refused(vers, limit, server=SERVER, opts=None):
    """The mount must fail by itself within `limit` seconds."""
    base = use_count()
    host = f"[{server}]" if ":" in server else server
    run("mkdir", "-p", "/mnt/a")
    begun = time.monotonic()
    status, text = run("mount", "-t", "nfs", "-o", (opts or options(vers)) + ",retry=0",
                       f"{host}:{EXPORT}", "/mnt/a", ok=False, timeout=limit)
    say(f"status {status} after {time.monotonic() - begun:.1f} s: {text.strip()}")
    expect(status != 0, "the mount succeeded")
    expect(status == 32, f"mount.nfs died with {status}")
    equal(nfs_mounts(), [], "NFS mounts")
    wait_for(lambda: use_count() == base, 30, f"use count back at {base}, not {use_count()}")


for vers in ("3", "4.2"):
    with check(f"v{vers}: closed port", 240):
        refused(vers, 200, opts=options(vers).replace(f"port={PORT}", "port=20050"))
    with check(f"v{vers}: address that nobody has", 240):
        # The mount protocol of v3 goes through TCP and would fail first: name the server for it.
        more = f",mountaddr={SERVER}" if vers == "3" else ""
        refused(vers, 200, server="10.0.0.77", opts=options(vers) + more)
    with check(f"v{vers}: port where only TCP listens", 240):
        refused(vers, 200, opts=options(vers).replace(f"port={PORT}", "port=2049"))

on_server("nfsd-down; rpc.nfsd --no-rdma 8 2>/dev/null || rpc.nfsd 8; cat /proc/fs/nfsd/portlist")
for vers in ("3", "4.2"):
    with check(f"v{vers}: server without RDMA", 240):
        listed = on_server("cat /proc/fs/nfsd/portlist")
        if "rdma" in listed:
            raise Skip("the server always listens on RDMA")
        refused(vers, 200)
    with check(f"v{vers}: TCP still works there"):
        mount(vers, opts=f"vers={vers},proto=tcp,nolock" if vers == "3" else f"vers={vers},proto=tcp")
        umount()
on_server("nfsd-down; nfsd-up")
with check("the next good mount works", 120), mounted("4.2") as at:
    write_file(f"{at}/good", b"good")
    equal(on_server(f"cat {EXPORT}/good; rm {EXPORT}/good"), "good", "content on the server")
done()
