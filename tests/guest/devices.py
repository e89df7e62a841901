# SPDX-License-Identifier: GPL-2.0
"""Devices that can do less than rxe and siw: what a transport can live with carries calls and replies
of all shapes; what it cannot live with is said, and ends with the mount.

The module of tests/caps makes a device smaller. What exceeds a limit then fails. Arguments are parts
of the capabilities to test, if not all.
"""

import concurrent.futures
import ctypes
import errno
import os
import re
import sys
import time

from lib import *

KO = "/run/payload/modules/rdma_caps.ko"
DEVICE = RDMA + "0"
SIZES = (1000, 20001, 70001, (1 << 20) + 1)
random_bytes(max(SIZES))
# What `make test` has of all this.
SHORT = ("max_send_sge=1", "max_qp_wr=4", "max_qp_wr=64", "list_len=17", "list_len=16", "no_mem_mgt", "rd_atom=0",
         "max_sgl_rd", "sg_gaps", "merge", "fail_")
# What can be used, with either end having it or both; which versions of NFS; of what device.
GOOD = (
    ("max_send_sge=1,max_recv_sge=1,max_sge_rd=1", "both", "3 4.2", "rxe"),
    ("max_send_sge=3,max_sge_rd=2", "both", "4.2", "rxe"),
    ("max_qp_wr=1000", "both", "4.2", "rxe siw"),
    ("max_qp_wr=200", "both", "3 4.2", "rxe"),
    ("max_qp_wr=45", "client", "4.2", "rxe"),
    ("max_qp_wr=64", "server", "4.2", "rxe"),
    ("max_cqe=200", "both", "4.2", "rxe"),
    ("max_mr=40", "client", "4.2", "rxe"),
    ("max_fast_reg_page_list_len=64,max_sge_rd=16", "client", "4.2", "rxe siw"),
    ("max_fast_reg_page_list_len=17,max_sge_rd=16", "client", "3 4.2", "rxe"),
    ("max_qp_rd_atom=1,max_qp_init_rd_atom=1", "both", "4.2", "rxe siw"),
    ("no_mem_mgt", "server", "4.2", "rxe"),
    ("no_local_lkey", "both", "4.2", "rxe"),
    ("num_comp_vectors=1,max_srq=0", "both", "4.2", "rxe"),
    ("max_sgl_rd=1", "both", "4.2", "rxe siw"),
    ("sg_gaps", "client", "3 4.2", "siw"),
    ("merge,max_fast_reg_page_list_len=32", "server", "4.2", "siw"),
)
# What cannot, what the end that has it says about it, and of what device.
BAD = (
    ("no_mem_mgt", "client", "device \\w+: no fast memory registration", "rxe"),
    ("max_fast_reg_page_list_len=0", "client", "device \\w+: no fast memory registration", "rxe"),
    ("max_fast_reg_page_list_len=16,max_sge_rd=16", "client",
     "device \\w+: regions of 16 pages are too small", "rxe"),
    ("max_fast_reg_page_list_len=1,max_sge_rd=16", "client",
     "device \\w+: regions of 1 pages are too small", "rxe"),
    ("max_qp_wr=44", "client", "device \\w+: queues of 44 work requests are too small", "rxe"),
    ("max_cqe=44", "client", "device \\w+: queues of 44 work requests are too small", "rxe"),
    ("max_qp_wr=8", "server", "device \\w+: queues of 8 work requests are too small", "rxe"),
    ("max_qp_rd_atom=0", "client", "device \\w+: nobody can read from it", "rxe"),
    ("max_qp_init_rd_atom=0", "server", "device \\w+: no RDMA Reads from client", "rxe"),
)


def on(node, command):
    return {"client": on_client, "server": on_server}[node](command)


def log(node):
    return "\n".join(line.partition("] ")[2] for line in on(node, "dmesg | tail -n 200").splitlines())


def connected(node):
    return re.findall(r"(?m)^.* state CONNECT .*rpcrdma.*$", on(node, "rdma resource show cm_id"))


@contextlib.contextmanager
def smaller(nodes, caps):
    """The devices of these nodes have these capabilities in the body, and are not asked for more."""
    done = []
    try:
        for node in nodes:
            on(node, f"insmod {KO} device={DEVICE} caps={caps}")
            done.append(node)
        yield
    finally:
        for node in done:
            # The server's end of a connection goes a moment after the client's.
            wait_for(lambda: not connected(node), 60, f"connections of the {node} are gone")
            on(node, "rmmod rdma_caps")
    for node in done:
        refused = re.findall(r"rdma_caps: refused: .*", log(node).rpartition("rdma_caps: " + DEVICE)[2])
        expect(not refused, f"the {node} asked for too much: {refused[:3]}")


def xattr(path, room):
    space = ctypes.create_string_buffer(room)
    got = libc.getxattr(path.encode(), b"user.x", space, room)
    expect(got >= 0, f"getxattr: errno {ctypes.get_errno()}")
    return space.raw[:got]


def use(at, name):
    """Calls and replies of all shapes: inline, with Read and Write chunks, long ones."""
    top = f"{at}/devices/{name}"
    os.mkdir(top)
    for size in sizes(name):
        data = random_bytes(size, len(name))
        write_file(f"{top}/{size}", data, direct=size > 70000)
        expect(read_file(f"{top}/{size}", direct=True) == data, f"{size} bytes differ")
    for n in range(12):
        os.symlink("s" * 3000, f"{top}/link{n:030}")
    equal(len(os.listdir(top)), len(sizes(name)) + 12, "names")
    equal(os.readlink(f"{top}/link{7:030}"), "s" * 3000, "link")


def sizes(name):
    """The largest once is enough."""
    return SIZES if name == "a" else SIZES[:-1]


def work(vers, long_calls=True):
    with server_folder("devices") as folder, mounted(vers) as at:
        names = ("a", "bb", "ccc")
        with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda name: use(at, name), names))
        if vers == "4.2" and long_calls:
            os.setxattr(f"{at}/devices/a/1000", "user.x", random_bytes(40000))
            expect(xattr(f"{at}/devices/a/1000", 65536) == random_bytes(40000), "attribute")
        got = on_server(f"cd {folder} && sha256sum $(find * -type f)").split()
        wanted = {f"{name}/{size}": sha(random_bytes(size, len(name)))
                  for name in names for size in sizes(name)}
        equal(dict(zip(got[1::2], got[::2])), wanted, "sums on the server")
        stats = xprt_stats(at)
        equal(stats["connect_count"], 1, "connections made")
        equal(stats["bad_reply_count"], 0, "bad replies")
        stats["regions of the server"] = len(on_server("rdma resource show mr").splitlines())
        if set(FLAVOURS.values()) == {"rust"}:
            here, = connections("server", read(CONNECTIONS))
            # That of a mount before this one may be there for a moment.
            wait_for(lambda: len(connections("client", on_server(f"cat {CONNECTIONS}"))) == 1, 20, "one connection")
            there, = connections("client", on_server(f"cat {CONNECTIONS}"))
            stats["granted"], asked = map(int, here["credits"].split("/"))
            equal(stats["granted"], min(asked, int(there["credits"])), "credits that the client has")
        return stats


def wanted(caps, devices="rxe siw"):
    parts = sys.argv[1:] or ([""] if LONG else SHORT)
    return RDMA in devices.split() and any(part in caps for part in parts)


def nodes_of(ends):
    """The ends that have the device, of those whose module is under test."""
    nodes = ["server", "client"] if ends == "both" else [ends]
    return [node for node in nodes if COMPARE or FLAVOURS[node] == "rust"]


if not os.path.exists(KO):
    with check("there is a module that makes a device smaller"):
        expect(SLOWNESS > 1, f"{KO} is not there")
        raise Skip("tests/caps is not built for this kernel")
    done()
# A server that has to ask mountd may end the connection if that takes long.
for vers in ("3", "4.2"):
    with mounted(vers) as at:
        os.listdir(at)
for caps, ends, versions, devices in GOOD:
    nodes = nodes_of(ends)
    for vers in versions.split() if LONG else versions.split()[-1:]:
        if wanted(caps, devices) and nodes:
            with check(f"v{vers} with {caps} on {' and '.join(nodes)}"), smaller(nodes, caps):
                # siw sends from regions without gaps only, whatever it is told; it receives into others.
                stats = work(vers, caps != "sg_gaps")
                if caps == "sg_gaps":
                    said = log("client").rpartition("rdma_caps: " + DEVICE)[2]
                    expect("a region with a gap" in said, "no region had a gap")
                if caps == "max_sgl_rd=1" and FLAVOURS["server"] == "rust" and RDMA == "rxe":
                    # With this the RDMA core gives regions to each queue pair that is to have contexts for
                    # reading, and sizes its queue for them. For lists of pages, as both modules have, it never
                    # uses them. (siw reads into regions with and without it.)
                    equal(stats["regions of the server"], 0, "regions of the server")
                if caps == "max_qp_wr=64" and "granted" in stats:
                    # What is announced is what is left behind the device's limit (row X32).
                    expect(stats["granted"] < 64, f"{stats['granted']} credits")
                if caps == "no_mem_mgt":
                    expect(stats["local_inv_needed"], "the server invalidates what it cannot")
                say(re.findall(r"\d+ credits", log(nodes[-1]))[-1:])
for caps, ends, words, devices in BAD:
    nodes = nodes_of(ends)
    if wanted(caps, devices) and nodes:
        with check(f"refused: {caps} on {nodes[0]}"):
            used = on(ends, "cat /sys/module/rpcrdma*/refcnt")
            with smaller(nodes, caps):
                before = time.monotonic()
                status, text = run("timeout", "-s", "KILL", str(15 * SLOWNESS), "mount", "-t", "nfs", "-o",
                                   options("4.2"), f"{SERVER}:{EXPORT}", "/mnt", ok=False, timeout=90)
                said = log(ends).rpartition("rdma_caps: " + DEVICE)[2].partition("\n")[2]
                say(f"{time.monotonic() - before:.0f} s, status {status}: {text.strip()}\n{said}")
                if COMPARE:
                    say(log("client")[-500:] + "\n--\n" + log("server")[-500:])
                expect(status, "mounted")
                expect(re.search(words, said) or COMPARE, f"the log of the {ends} has: {said}")
            wait_for(lambda: on(ends, "cat /sys/module/rpcrdma*/refcnt") == used, 20,
                     f"the use count of the {ends} is {used} again")

ANY = "max_srq=0"
FAIL = "/sys/module/rdma_caps/parameters/fail_"
if wanted("fail_maps") and nodes_of("client"):
    with check("a region that cannot be mapped: the call fails with EIO, the next one does not"), \
            smaller(["client"], ANY), server_folder("devices"), mounted("3") as at:
        # (A session of NFSv4 may repeat the call: row C58.)
        fd = os.open(f"{at}/devices/f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        data = buffer(random_bytes(300001))
        try:
            os.pwrite(fd, data, 0)
            for call in (lambda: os.pwrite(fd, data, 0), lambda: os.pread(fd, 300001, 0)):
                write(FAIL + "maps", "1")
                try:
                    call()
                    raise Failed("it went well")
                except OSError as error:
                    equal(error.errno, errno.EIO, "errno")
                equal(read(FAIL + "maps").strip(), "0", "mappings still to fail")
                call()
            expect(os.pread(fd, 300001, 0) == data, "data differ")
        finally:
            os.close(fd)
        equal(xprt_stats(at)["connect_count"], 1, "connections made")
for node in nodes_of("both") if wanted("fail_posts") else ():
    with check(f"a work request that the {node} cannot post: the connection is renewed"), \
            smaller([node], ANY), server_folder("devices") as folder, mounted("4.2") as at:
        data = random_bytes(300001)
        for number in (1, 2):
            on(node, f"echo 1 >{FAIL}posts")
            write_file(f"{at}/devices/f", data, direct=True)
            expect(read_file(f"{at}/devices/f", direct=True) == data, "data differ")
            equal(server_sums(folder), {"f": sha(data)}, "sums on the server")
            equal(xprt_stats(at)["connect_count"], 1 + number, "connections made")
done()
