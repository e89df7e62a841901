# SPDX-License-Identifier: GPL-2.0
"""Ways to mount: sizes, several connections, IPv6, two at once, many in a row, module in use."""

import concurrent.futures
import os
import re

from account import everywhere
from lib import *

DATA = random_bytes((1 << 20) + 1)


def copy_numbered(at, n, direct):
    copy_through(at, f"n{n}", direct, random_bytes(len(DATA), n))


def copy_through(at, name, direct, data=DATA):
    write_file(f"{at}/m/{name}", data, direct)
    expect(read_file(f"{at}/m/{name}", direct) == data, f"{name}: what was read back differs")


with server_folder("m") as folder:
    for size in (1024, 4096, 32768, 65536, 1 << 20):
        for vers in ("3", "4.2"):
            with check(f"v{vers} rsize={size},wsize={size}"), \
                    mounted(vers, f"rsize={size},wsize={size}") as at:
                line, = [l for l in read("/proc/mounts").splitlines() if f" {at} " in l]
                got = re.findall(r"[rw]size=(\d+)", line)
                equal(got, [str(size)] * 2, "rsize and wsize in effect")
                data = DATA if size >= 32768 else DATA[:100001]
                copy_through(at, "b", False, data)
                copy_through(at, "d", True, data)
                equal(server_sums(folder), {n: sha(data) for n in "bd"}, "sums on the server")

    with check("nconnect=4: four connections, all used"), mounted("4.2", "nconnect=4") as at:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: copy_numbered(at, n, True), range(8)))
        lines = xprt_lines(at)
        equal(len(lines), 4, "xprt lines")
        for line in lines:
            expect(int(line.split()[2 + XPRT_FIELDS.index("sends")]) > 1, "idle: " + line)
        equal({n: d for n, d in server_sums(folder).items() if n.startswith("n")},
              {f"n{n}": sha(random_bytes(len(DATA), n)) for n in range(8)}, "sums")

    for vers in ("3", "4.2"):
        proto = options(vers).replace("proto=rdma,", "proto=rdma6,").replace("=tcp", "=tcp6")
        with check(f"v{vers} over IPv6"), mounted(vers, opts=proto, server=SERVER6) as at:
            copy_through(at, "six", True)
            equal(server_sums(folder)["six"], sha(DATA), "sum on the server")

    for words, vers, server in (("proto=rdma", "4.2", SERVER), ("rdma", "4.2", SERVER),
                                ("proto=rdma6", "4.2", f"[{SERVER6}]"),
                                ("vers=3,proto=rdma,nolock,mountproto=tcp", "3", SERVER)):
        with check(f"mount -o {words}: the port is the one of NFS/RDMA"):
            run("mount", "-o", words, f"{server}:{EXPORT}", "/mnt/a")
            try:
                line, = [l for l in read("/proc/mounts").splitlines() if " /mnt/a " in l]
                for option in (f"vers={vers}", f"proto={'rdma6' if '6' in words else 'rdma'}"):
                    expect(f",{option}," in line, f"no {option}: {line}")
                folder, = transports(server.strip("[]"))
                expect(f"\ndst_port={PORT}\n" in read(folder + "/xprt_info"), read(folder + "/xprt_info"))
                copy_through("/mnt/a", "plain", True)
            finally:
                umount()

    with check("two mounts at once, v3 and v4.2"), \
            mounted("3", at="/mnt/a") as a, mounted("4.2", at="/mnt/b") as b:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(copy_through, at, f"two{n}", n % 2 == 0)
                    for n, at in enumerate((a, b, a, b))]
            for job in jobs:
                job.result()
        expect(read_file(f"{a}/m/two1") == DATA and read_file(f"{b}/m/two0", True) == DATA,
               "one mount does not see what the other wrote")

    with check("module cannot be removed while mounted"), mounted("4.2") as at:
        expect(use_count() > 0, "use count is 0")
        status, text = run("rmmod", MODULE, ok=False)
        expect(status and "in use" in text, f"rmmod: status {status}: {text}")
        copy_through(at, "still", True)

with check("module cannot be removed while nfsd has a listener"):
    expect(int(on_server("cat /sys/module/$MODULE/refcnt")) > 0, "use count is 0")
    status, text = run("on-server", "rmmod $MODULE", ok=False)
    expect(status and "in use" in text, f"rmmod: status {status}: {text}")
    # Who asks for the port of NFS is told the one of TCP.
    expect(str(PORT) not in on_server("rpcinfo -p").split(), "rpcbind knows the listener")

with check("100 mounts and unmounts, which leave no page each behind", 900):
    base = use_count()
    objects = {kind: len(rdma_objects(kind)) for kind in ("pd", "cq", "qp", "mr")}

    def grown():
        """By how many pages each machine's memory grows with 100 mounts."""
        before = everywhere()
        for n in range(100):
            vers = VERSIONS[n % 4]
            with mounted(vers):
                pass
        after = everywhere()
        return [(after[name]["memory"]["pages"] - old["memory"]["pages"]) // 4096 for name, old in before.items()]

    pages = grown()
    say(f"pages more: {pages}")
    if max(pages) >= 100 and SLOWNESS == 1:
        # Others come and go too, but not with each mount. (KASAN keeps what was freed.)
        pages = grown()
        expect(max(pages) < 100, f"pages more, once again: {pages}")
    wait_for(lambda: use_count() == base, 20, f"use count back at {base}")
    # In one guest the server's end of the last connection takes a moment longer.
    wait_for(lambda: {kind: len(rdma_objects(kind)) for kind in objects} == objects, 20,
             f"RDMA objects back at {objects}")
done()
