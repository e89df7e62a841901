# SPDX-License-Identifier: GPL-2.0
"""Traffic of every kind for a packet capture; tests/capture compares it with these statistics."""

import ctypes
import json
import os

from lib import *

SIZES = (3, 3000, 4096, 65536, 65537, 1 << 20)
# Lengths of reads: the server may not write the padding behind them.
ODD = (4097, 65535)


def getxattr_short(path):
    """Ask for an attribute with less room than it needs."""
    space = ctypes.create_string_buffer(128)
    return libc.getxattr(path.encode(), b"user.big", space, 128), ctypes.get_errno()


with check("traffic with chunks of every kind, recorded"):
    if NODES == 1:
        raise Skip("within one guest no packet reaches a network device")
    if RDMA != "rxe":
        raise Skip("the comparison knows RoCE alone")
    with server_folder("wire") as folder:
        on_server(f"cd {folder} && seq -f 'a-name-of-some-length-%04g' 300 | xargs touch && "
                  "python3 -c 'import os; os.setxattr(\"a-name-of-some-length-0001\", "
                  "\"user.big\", b\"x\" * 20000)'")
        run("on-host", "capture start wire")
        with mounted("4.2") as at:
            for size in SIZES:
                write_file(f"{at}/wire/{size}", random_bytes(size), direct=True)
                read_file(f"{at}/wire/{size}", direct=True)
            fd = os.open(f"{at}/wire/{1 << 20}", os.O_RDONLY | os.O_DIRECT)
            for size in ODD:
                room = buffer(bytes(size))
                equal(os.preadv(fd, [room], 0), size, "bytes read")
                expect(room == random_bytes(size), "what was read differs")
            os.close(fd)
            os.symlink("y" * 1000, f"{at}/wire/short-link")
            os.symlink("/".join(["y" * 99] * 40), f"{at}/wire/long-link")
            os.readlink(f"{at}/wire/long-link")
            os.setxattr(f"{at}/wire/3", "user.a", random_bytes(10000))
            equal(getxattr_short(f"{at}/wire/a-name-of-some-length-0001")[0], -1, "short getxattr")
            expect(len(os.listdir(f"{at}/wire")) > 300, "directory")
            stats = xprt_stats(at)
            run("on-host", "capture stop")
            equal(xprt_stats(at)["sends"], stats["sends"], "sends after the end of the capture")
    with open("/out/wire.json", "w") as f:
        json.dump({"stats": stats, "sizes": SIZES, "odd": ODD, "module": MODULE,
                   "slots": int(read("/proc/sys/sunrpc/rdma_slot_table_entries")),
                   "inline_send": int(read("/proc/sys/sunrpc/rdma_max_inline_write")),
                   "inline_receive": int(read("/proc/sys/sunrpc/rdma_max_inline_read"))}, f)
done()
