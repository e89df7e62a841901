# SPDX-License-Identifier: GPL-2.0
"""Other ways to a server: sixteen connections, several addresses, referrals, link-local addresses;
and what is refused: swap.

Nothing here depends on the modules, but for the last check and what messages say.
"""

import concurrent.futures
import ctypes
import glob
import mmap
import os
import re
import socket
import time

from events import *
from lib import *

# A further address of the server.
OTHER = "10.0.0.77"
SIZE = 300001
DATA = random_bytes(SIZE)
MADV_PAGEOUT = 21


@contextlib.contextmanager
def another_address():
    on_server(f"ip addr add {OTHER}/24 dev $NETDEV")
    try:
        yield
    finally:
        on_server(f"ip addr del {OTHER}/24 dev $NETDEV")


@contextlib.contextmanager
def exported(path, extra):
    on_server(f"exportfs -o rw,async,no_root_squash,no_subtree_check,{extra} '*:{path}'")
    try:
        yield
    finally:
        # As /etc/exports has it, or not at all. Without anything in between, as clients may ask then.
        on_server("exportfs -ra")


# The client's own address, where it is a server for once.
HERE = "10.0.0.2"
BEGIN = f"""
set -e
modprobe nfsd
mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
mkdir -p {EXPORT} /var/lib/nfs/nfsdcld /var/lib/nfs/v4recovery
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
mount -t tmpfs -o mode=1777 here {EXPORT}
echo '{EXPORT} *(rw,async,no_root_squash,no_subtree_check,insecure,fsid=1)' >/etc/exports
nfsdcld
exportfs -ra
rpc.mountd
nfsd-up
"""


@contextlib.contextmanager
def serving_here():
    """This machine is a server, too, within the body."""
    run("sh", "-c", BEGIN)
    try:
        yield
    finally:
        run("sh", "-c", f"nfsd-down; pkill rpc.mountd; pkill nfsdcld; rm /etc/exports; exportfs -ua; umount {EXPORT}; "
                        "umount /proc/fs/nfsd")


def copies(at, name, count):
    """Files written and read, so many at once."""
    def copy(n):
        data = random_bytes(SIZE, n)
        write_file(f"{at}/{name}{n}", data, direct=n % 2 == 0)
        return read_file(f"{at}/{name}{n}", direct=n % 2 == 0) == data

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        expect(all(pool.map(copy, range(count))), "what was read back differs")


def option(at, name):
    line, = [l for l in read("/proc/mounts").splitlines() if f" {at} " in l]
    return re.search(rf"[ ,]{name}=([^, ]+)", line).group(1)


with server_folder("ways") as folder:
    for vers in ("3", "4.2"):
        with check(f"v{vers} nconnect=16: sixteen connections, all used"), \
                mounted(vers, "nconnect=16") as at:
            copies(f"{at}/ways", vers, 32)
            used = sends(at)
            equal(len(used), 16, "connections")
            expect(min(used) > 1, f"calls sent by each: {used}")
            if NODES > 1:
                # All sixteen are lost at once, and come back.
                run("rdma", "link", "delete", f"{RDMA}0")
                run("rdma", "link", "add", f"{RDMA}0", "type", RDMA, "netdev", NETDEV)
                copies(f"{at}/ways", f"again{vers}", 32)
                copies(f"{at}/ways", f"again{vers}", 32)
                grown = [new - old for new, old in zip(sends(at), used)]
                equal(len(grown), 16, "connections")
                expect(min(grown) > 0, f"calls sent by each: {grown}")

    with check("max_connect: a mount by another address of the server adds a connection"), \
            another_address(), mounted("4.2", "max_connect=4") as first, \
            mounted("4.2", "max_connect=4", at="/mnt/b", server=OTHER):
        equal([len(transports(a)) for a in (SERVER, OTHER)], [1, 1], "transports by address")
        before = sends(first)
        equal(len(before), 2, "connections")
        copies(f"{first}/ways", "max", 8)
        expect(all(new > old for new, old in zip(sends(first), before)), f"{sends(first)} {before}")

    with check("trunkdiscovery: addresses that the server tells of are used"), another_address(), \
            exported(EXPORT, f"fsid=1,insecure,replicas={EXPORT}@{SERVER}:{EXPORT}@{OTHER}"), \
            mounted("4.2", "trunkdiscovery,max_connect=4") as at:
        equal([len(transports(a)) for a in (SERVER, OTHER)], [1, 1], "transports by address")
        before = sends(at)
        copies(f"{at}/ways", "trunk", 8)
        expect(all(new > old for new, old in zip(sends(at), before)), f"{sends(at)} {before}")

    with check("a referral goes to another address by RDMA"), another_address():
        on_server("mkdir -p /export/ref")
        with exported("/export/ref", f"fsid=7,insecure,refer={EXPORT}/ways@{OTHER}"):
            at = mount("4.2", export="/")
            try:
                there = f"{at}/export/ref"
                with traced(run) as events:
                    copies(there, "ref", 2)
                made = [t for t in of(events, "xprtrdma_connect") if "rc=0 " in t]
                expect(any(t.startswith(f"peer=[{OTHER}]:{PORT} ") for t in made), f"connections: {made}")
                # The client sees that it is the same server, and keeps the connection it has.
                expect(option(there, "addr") in (OTHER, SERVER), read("/proc/mounts"))
                equal(option(there, "proto"), "rdma", "its protocol")
                equal(on_server(f"sha256sum {folder}/ref1").split()[0], sha(random_bytes(SIZE, 1)), "on the server")
            finally:
                run("umount", "-R", at)

    with check("a referral goes to another server by RDMA", 200):
        if NODES == 1:
            raise Skip("there is one server")
        on_server("mkdir -p /export/other")
        with serving_here(), exported("/export/other", f"fsid=8,insecure,refer={EXPORT}@{HERE}"):
            at = mount("4.2", export="/")
            try:
                there = f"{at}/export/other"
                before = sends(at)[0]
                copies(there, "away", 2)
                equal(option(there, "addr"), HERE, "address")
                # That server has one to this machine, too, for callbacks.
                expect(transports(HERE), "no transport to the other server")
                expect(sum(sends(there)) > 10, f"calls sent there: {sends(there)}")
                say(f"calls sent to the first server meanwhile: {sends(at)[0] - before}")
                equal(run("sha256sum", f"{EXPORT}/away1").split()[0], sha(random_bytes(SIZE, 1)), "what the other server has")
            finally:
                run("umount", "-R", at)

    with check("IPv6, link-local with a scope"):
        text = on_server("ip -6 -o addr show dev $NETDEV scope link")
        address = re.search(r"inet6 (fe80:[0-9a-f:]+)/", text).group(1)
        if os.environ["SERVER_FLAVOUR"] == "rust":
            # No more than ten messages of a kind come in 30 s.
            time.sleep(31)
        for vers in ("3", "4.2"):
            proto = options(vers).replace("proto=rdma,", "proto=rdma6,").replace("=tcp", "=tcp6")
            with mounted(vers, opts=proto, server=f"{address}%{NETDEV}") as at:
                copies(f"{at}/ways", f"local{vers}-", 4)
                scope = socket.if_nametoindex(NETDEV)
                equal(option(at, "addr"), f"{address}%{scope}", "address")
                # Another connection goes there, too.
                on_server("nfsd-down; nfsd-up")
                copies(f"{at}/ways", f"local{vers}-", 4)
                equal(xprt_stats(at)["connect_count"], 2, "connections made")
        # The kernel log has the scope too, on both ends.
        os.makedirs("/mnt/b", exist_ok=True)
        run("mount", "-t", "nfs", "-o", proto.replace(f"port={PORT}", "port=20050") + ",retry=0",
            f"[{address}%{NETDEV}]:{EXPORT}", "/mnt/b", ok=False)
        for side, wanted in (
                (run, rf"cannot connect to server \[{address}%{scope}\]:20050 by device {RDMA}0: "
                      r"(ECONNREFUSED|Error\(111\))"),
                (on_server, rf"connection of client \[fe80:[0-9a-f:]+%\d+\]:\d+ by device {RDMA}0: ")):
            if side is on_server and os.environ["SERVER_FLAVOUR"] != "rust" or MODULE != "rpcrdma_rust":
                continue
            expect(re.search(wanted, "\n".join(log(side))), f"no {wanted!r} in {log(side)[-8:]}")

    with check("another address of the client: the route says from which one it connects"):
        mine, route = "10.0.0.88", f"{SERVER}/32 dev {NETDEV}"
        run("ip", "addr", "add", f"{mine}/24", "dev", NETDEV)
        try:
            # The device's table of addresses follows a little later.
            gids = f"cat /sys/class/infiniband/{RDMA}0/ports/1/gids/* 2>/dev/null"
            wait_for(lambda: "0a00:0058" in shell(run, gids + "; true") or RDMA == "siw", 20, "the device has the address")
            run("ip", "route", "add", *route.split(), "src", mine)
            # Row W51: no source address is given to the connection manager, whatever the mount says of the client's.
            with probes(run, "p:probe_resolve rdma_resolve_addr src=%si:x64") as events:
                for vers, extra in (("3", ""), ("4.2", ""), ("4.0", "clientaddr=10.0.0.2")):
                    with mounted(vers, extra) as at:
                        copies(f"{at}/ways", f"from{vers}-", 2)
                        shown = run("rdma", "resource", "show", "cm_id")
                        expect(f" src-addr {mine}:" in shown, shown)
            equal({number(t, "src") for t in of(events, "probe_resolve")}, {0}, "source addresses asked for")
        finally:
            run("ip", "route", "del", *route.split(), ok=False)
            run("ip", "addr", "del", f"{mine}/24", "dev", NETDEV)

    with check("an export for privileged ports takes any port of RDMA"), \
            exported(EXPORT, "fsid=1,secure"):
        for vers in ("3", "4.2"):
            with mounted(vers) as at:
                copies(f"{at}/ways", "secure", 2)

    with check("no port is given: rpcbind knows one, and it is shown"):
        if RDMA == "siw":
            raise Skip("port 2049 is TCP's, which nfsd has there: iWARP is made of TCP")
        # To rpcbind nfsd is a service of TCP. What the mount program makes of it is left out.
        at, words = "/mnt/b", (f"vers=3,proto=rdma,port=0,nolock,addr={SERVER},mountaddr={SERVER},"
                               "mountproto=tcp,mountvers=3")
        os.makedirs(at, exist_ok=True)
        on_server("echo 'rdma 2049' >/proc/fs/nfsd/portlist")
        try:
            status = libc.mount(f"{SERVER}:{EXPORT}".encode(), at.encode(), b"nfs", 0, words.encode())
            equal((status, os.strerror(ctypes.get_errno()) if status else ""), (0, ""), "mount")
            try:
                copies(f"{at}/ways", "bound", 2)
                equal(xprt_stats(at)["bind_count"], 1, "bind_count")
                folder, = transports()
                expect("\ndst_port=2049\n" in read(folder + "/xprt_info"), read(folder + "/xprt_info"))
                shown = [read(path) for path in glob.glob("/sys/kernel/debug/sunrpc/rpc_xprt/*/info")]
                expect(any(re.search(r"(?s)netid: +rdma\n.*port: +2049\n", text) for text in shown), shown)
                made = [l for l in rdma_objects("cm_id") if f"[{MODULE}]" in l]
                expect(any(f"dst-addr {SERVER}:2049 " in l for l in made), made)
                for file in ("servers", "volumes"):
                    equal(nfsfs(file), [("3", *hexadecimal(SERVER, 2049))], "/proc/fs/nfsfs/" + file)
            finally:
                run("umount", at)
        finally:
            on_server("nfsd-down; nfsd-up")

    if MODULE == "rpcrdma_rust":
        with check("swap is refused, and the kernel log says why"):
            for vers in ("3", "4.2"):
                with mounted(vers) as at:
                    path = f"{at}/ways/swap{vers}"
                    write_file(path, bytes(4 << 20))
                    os.chmod(path, 0o600)
                    run("mkswap", path)
                    status, text = run("swapon", path, ok=False)
                    expect(status, "swapped over RDMA")
                    expect("not supported" in text, f"swapon says: {text}")
                    equal(len(read("/proc/swaps").splitlines()), 1, "lines of /proc/swaps")
                    copies(f"{at}/ways", "after", 2)
                    expect("swap over RDMA is not supported: server" in run("dmesg"), "the log says nothing of swap")
        for vers in ("3", "4.2"):
            with check(f"v{vers}: swap that sunrpc takes for granted the second time takes no page"), mounted(vers) as at:
                path, refused = f"{at}/ways/swap{vers}", "swap over RDMA is not supported: nothing is swapped out"
                expect(run("swapon", path, ok=False)[0], "swapped over RDMA")
                status, text = run("swapon", path, ok=False)
                say(f"the second swapon: {status} {text.strip()}")
                equal(status, 0, "status of the second swapon: sunrpc asks us again")
                try:
                    before = run("dmesg").count(refused)
                    data, rooms = random_bytes(64 << 10), []
                    # After ten messages of the same kind the next one comes 30 s later; and memory that
                    # could not go out is not tried again at once.
                    for _ in range(50):
                        rooms.append(mmap.mmap(-1, len(data)))
                        rooms[-1][:] = data
                        rooms[-1].madvise(MADV_PAGEOUT)
                        time.sleep(1)
                        if run("dmesg").count(refused) > before:
                            break
                    else:
                        raise Failed("the log does not say why")
                    expect(all(room[:] == data for room in rooms), "memory is not what it was")
                    copies(f"{at}/ways", "after", 2)
                finally:
                    run("swapoff", path)
done()
