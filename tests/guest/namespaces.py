# SPDX-License-Identifier: GPL-2.0
"""Mounts from many network namespaces at once, and namespaces that go while something is mounted.

Each namespace has an RDMA device of its own, on a link to its guest, which forwards. All devices can
be used from everywhere (the only way for rxe), so the address that the server sees has to tell whether
a connection was made in the namespace of its mount.

32 mounts are from 8 namespaces, as each device has sysfs files in each namespace, 3000 of them; with
LONG, from 32 namespaces. Those that end under load, with their devices, do so twice; with LONG 50 times. Each
time our module goes, too, once nobody uses it any more, and comes back.

namespaces.py [TIMES [PART...]]: how often, and only these parts of the test: many, killed, inside, ends, silent.
"""

import concurrent.futures
import contextlib
import json
import random
import subprocess
import sys

from leaving import *
from lib import *
from shim import nothing_left

MOUNTS = 32
COUNT = 32 if LONG else 8
TIMES = int(sys.argv[1]) if len(sys.argv) > 1 else 50 if LONG else 2
SIZE = 512 << 10
US, SUBNET = "10.0.0.2", "10.1"


# Writes for good, and reads what it has written from the server, until it is told that it is enough.
WRITER = """
import os, sys
fd, rounds = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), 0
def block(number):
    return (b"%08d" % number) * 8192
while not os.path.exists("/tmp/enough"):
    os.pwrite(fd, block(rounds), (rounds % 64) << 16)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for number in range(max(rounds - 3, 0), rounds + 1):
        if os.pread(fd, 65536, (number % 64) << 16) != block(number):
            sys.exit(f"round {rounds}: what was read of {number} differs")
    rounds += 1
    print(rounds, flush=True)
"""


class Net:
    """A network namespace."""

    def __init__(self, number):
        self.name, self.outside = f"n{number}", f"h{number}"
        self.gateway, self.address = f"{SUBNET}.{number}.1", f"{SUBNET}.{number}.2"

    @contextlib.contextmanager
    def inside(self):
        """Within the body this thread, and what it starts, are there."""
        with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{self.name}") as there:
            os.setns(there.fileno(), os.CLONE_NEWNET)
            try:
                yield
            finally:
                os.setns(here.fileno(), os.CLONE_NEWNET)

    def furnish(self):
        """An address, an RDMA device, and a name: for the server, a guest is one client otherwise."""
        with self.inside():
            batch("ip", f"addr add {self.address}/24 dev e0", "link set e0 up", "link set lo up",
                  f"route add default via {self.gateway}")
            run("rdma", "link", "add", self.name, "type", RDMA, "netdev", "e0")
            folder = f"/tmp/sys.{self.name}"
            os.makedirs(folder)
            run("mount", "-t", "sysfs", "sysfs", folder)
            write(f"{folder}/fs/nfs/net/nfs_client/identifier", self.name)
            run("umount", folder)
            os.rmdir(folder)

    def has_ended(self):
        """Whether it is no more: then both ends of its link have gone."""
        return not os.path.exists(f"/sys/class/net/{self.outside}")


class Mount:
    """A mount from a namespace."""

    def __init__(self, net, vers, number):
        self.net, self.vers, self.name = net, vers, f"{net.name}-{vers}"
        self.at, self.data = f"/mnt/{self.name}", random_bytes(SIZE, number)

    def mount(self):
        with self.net.inside():
            mount(self.vers, at=self.at)

    def work(self, folder):
        """A file is written, and read from the server again."""
        path = f"{self.at}/{folder}/{self.name}"
        write_file(path, self.data, direct=True, block=128 << 10)
        equal(sha(read_file(path, direct=True, block=128 << 10)), sha(self.data), f"read of {path}")


def batch(tool, *lines):
    write("/tmp/batch", "\n".join(lines) + "\n")
    run(tool, "-b", "/tmp/batch")


def at_once(job, these):
    with concurrent.futures.ThreadPoolExecutor(len(these)) as pool:
        for result in [pool.submit(job, this) for this in these]:
            result.result()


@contextlib.contextmanager
def namespaces(count):
    """So many of them, with links and devices. At the end, they have to end within a minute."""
    nets = [Net(number) for number in range(count)]
    forward = read("/proc/sys/net/ipv4/ip_forward")
    write("/proc/sys/net/ipv4/ip_forward", "1")
    on_server(f"ip route replace {SUBNET}.0.0/16 via {US}")
    try:
        batch("ip", *(line for net in nets for line in (
            f"netns add {net.name}",
            f"link add {net.outside} mtu 9000 type veth peer name e0 mtu 9000 netns {net.name}",
            f"addr add {net.gateway}/24 dev {net.outside}", f"link set {net.outside} up")))
        for net in nets:
            net.furnish()
        yield nets
    finally:
        for net in nets:
            run("ip", "netns", "delete", net.name, ok=False)
        for path in nfs_mounts():
            run("umount", "-f", "-l", path, ok=False)
        on_server(f"ip route delete {SUBNET}.0.0/16")
        write("/proc/sys/net/ipv4/ip_forward", forward)
        ended(nets)


def ended(nets):
    begun = time.monotonic()
    wait_for(lambda: all(net.has_ended() for net in nets), 60, "the namespaces have ended")
    say(f"the namespaces ended after {time.monotonic() - begun:.1f} s")


def peers():
    """Where the server's connections with namespaces come from: {address: how many}."""
    found = [line.get("dst-addr", "").rpartition(":")[0]
             for line in json.loads(on_server("rdma -j resource show cm_id"))]
    return {address: found.count(address) for address in found if address.startswith(SUBNET + ".")}


def many():
    with check(f"{MOUNTS} mounts from {COUNT} namespaces: files at once", 400), \
            server_folder("nets") as folder, namespaces(COUNT) as nets:
        mounts = [Mount(nets[number % COUNT], VERSIONS[(number + number // COUNT) % 4], number)
                  for number in range(MOUNTS)]
        at_once(Mount.mount, mounts)
        equal(peers(), {net.address: MOUNTS // COUNT for net in nets}, "connections of the server")
        at_once(lambda each: each.work("nets"), mounts)
        equal(server_sums(folder), {each.name: sha(each.data) for each in mounts}, "sums on the server")
        # What is mounted keeps its namespace.
        for net in nets[:2]:
            run("ip", "netns", "delete", net.name)
        at_once(lambda each: each.work("nets"), [each for each in mounts if each.net in nets[:2]])
        expect(not any(net.has_ended() for net in nets), "a namespace ended with something mounted")
        run("umount", *(each.at for each in mounts))
        wait_for(lambda: not peers(), 20, "the server has closed the connections")
        ended(nets[:2])


def killed_at_work(folder):
    """Two namespaces, each with an RDMA device and a process at work, alone, at what it has mounted: it is killed."""
    with namespaces(2) as nets:
        works = []
        try:
            for net, vers in zip(nets, ("3", "4.2")):
                # This makes a mount namespace too, so that the process alone holds the mount.
                os.makedirs(f"/mnt/{net.name}", exist_ok=True)
                works.append(subprocess.Popen(
                    ["ip", "netns", "exec", net.name, "sh", "-c",
                     f"mount -t nfs -o {options(vers)} {SERVER}:{EXPORT} /mnt/{net.name} && "
                     f"python3 -c '{WRITER}' /mnt/{net.name}/nets/{net.name}"],
                    start_new_session=True, stdout=subprocess.DEVNULL))
            wait_for(lambda: len(on_server(f"find {folder} -size +100k").split()) == 2, 60,
                     "both are at work")
            for net in nets:
                run("ip", "netns", "delete", net.name)
            expect(not any(net.has_ended() for net in nets), "a namespace ended with something mounted")
            equal(peers(), {net.address: 1 for net in nets}, "connections of the server")
            time.sleep(random.random())
            equal([each.poll() for each in works], [None] * 2, "how the work ended")
        finally:
            for each in works:
                os.killpg(each.pid, 9)
                each.wait(60 * SLOWNESS)
        ended(nets)
        wait_for(lambda: not peers(), 20, "the server has closed the connections")
    on_server(f"rm -f {folder}/*")
    reload("client")


def reload(where):
    """Nobody uses the module of this side: it can go, and comes back."""
    if FLAVOURS[where] == "rust":
        took = leave(where)
        come_back(where)
        say(f"the module was gone after {took:.1f} s")
        expect(took < UNLOAD * SLOWNESS, f"it took {took:.1f} s")


def killed():
    run("rm", "-f", "/tmp/enough")
    with check(f"namespaces whose processes are killed at work, {TIMES} times: mounts and devices go with them",
               100 + 60 * TIMES), server_folder("nets") as folder, \
            nothing_left(on_server, "in use at the server"), nothing_left(run, "in use at the client"):
        for turn in range(TIMES):
            killed_at_work(folder)


# A second nfsd on the server's machine, in a namespace with a device of its own. NFSv3 alone: NFSv4 would
# wait a minute for an nfsdcld there.
INSIDE = "10.2.0.2"
SECOND = """
ip addr add 10.2.0.2/24 dev e9; ip link set e9 up; ip link set lo up; ip route add default via 10.2.0.1
rdma link add s9 type $RDMA netdev e9
mount -t nfsd nfsd /proc/fs/nfsd
# Its own rpcbind.
mount -t tmpfs none /run
rpcbind
exportfs -ra
rpc.mountd
echo +3 -4 >/proc/fs/nfsd/versions
echo rdma 20049 >/proc/fs/nfsd/portlist
echo 2 >/proc/fs/nfsd/threads
"""


def begin_second():
    on_server("ip netns add srv; ip link add h9 mtu 9000 type veth peer name e9 mtu 9000 netns srv; "
              "ip addr add 10.2.0.1/24 dev h9; ip link set h9 up; "
              f"RDMA={RDMA} ip netns exec srv sh /tmp/second")


def end_second():
    """With its last process go its file systems, with nfsd's nfsd, and then the namespace; how soon?"""
    # rpcbind first: as the last one it would have to answer nfsd, which ends with it, and be waited for
    # (Documentation/upstream-findings.md).
    on_server("""all=$(ip netns pids srv); first=$(for p in $all; do grep -lx rpcbind /proc/$p/comm; done | cut -d/ -f3)
        kill -9 $first; for n in $(seq 50); do [ -e /proc/$first ] || break; sleep 0.1; done
        kill -9 $all; ip netns delete srv; :""")
    begun = time.monotonic()
    wait_for(lambda: "h9" not in on_server("ls /sys/class/net"), 60, "the server's namespace has ended")
    return time.monotonic() - begun


@contextlib.contextmanager
def second_server():
    on_server(f"cat >/tmp/second <<'X'\nset -e{SECOND}X")
    on_server("cat /proc/sys/net/ipv4/ip_forward >/tmp/forward; echo 1 >/proc/sys/net/ipv4/ip_forward")
    run("ip", "route", "add", "10.2.0.0/16", "via", SERVER)
    try:
        begin_second()
        yield
    finally:
        run("ip", "route", "del", "10.2.0.0/16")
        on_server("cat /tmp/forward >/proc/sys/net/ipv4/ip_forward")
        say(f"the server's namespace ended after {end_second():.1f} s")


def inside():
    with check("nfsd in a namespace: files, and its device goes and comes back; it ends with what is in it", 300), \
            server_folder("nets") as folder, second_server():
        with mounted("3", server=INSIDE) as at:
            data = random_bytes(SIZE)
            write_file(f"{at}/nets/one", data, direct=True)
            expect(f"src-addr {INSIDE}:{PORT}" in on_server("rdma resource show cm_id"), "connected elsewhere")
            on_server(f"ip netns exec srv sh -c 'rdma link delete s9; rdma link add s9 type {RDMA} netdev e9'")
            write_file(f"{at}/nets/two", data, direct=True)
            equal(server_sums(folder), dict.fromkeys(("one", "two"), sha(data)), "sums on the server")


@contextlib.contextmanager
def writers(folder, *works):
    """A process for each (name, command): what it says is read from a log. They are killed in the end."""
    run("rm", "-f", "/tmp/enough")
    jobs = {}
    try:
        for name, command in works:
            with open(f"/tmp/writer-{name}", "w") as log:
                jobs[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        yield Writers(folder, jobs)
    finally:
        for job in jobs.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, 9)


class Writers:
    """Processes that run WRITER, each with a file of its name in a folder of the server."""

    def __init__(self, folder, jobs):
        self.folder, self.jobs = folder, jobs

    def rounds(self):
        return [len(read(f"/tmp/writer-{name}").split()) for name in self.jobs]

    def go_on(self, limit):
        """Each has written a block that it began now, and the next."""
        before = self.rounds()
        wait_for(lambda: all(new > old + 2 for new, old in zip(self.rounds(), before)), limit,
                 f"all write more than {before}")

    def end(self):
        write("/tmp/enough", "")
        for name, job in self.jobs.items():
            equal(job.wait(60 * SLOWNESS), 0, f"exit of a writer that said {read(f'/tmp/writer-{name}')[-300:]}")
        sums = server_sums(self.folder)
        for name, count in zip(self.jobs, self.rounds()):
            # Round n has written all of block n modulo 64.
            wanted = b"".join(b"%08d" % max(range(place, count, 64)) * 8192 for place in range(min(count, 64)))
            equal(sums[name], sha(wanted), f"sum of what {name} wrote in {count} rounds")


def ends():
    with check(f"the namespace of nfsd ends under load, {TIMES} times: work goes on when there is one again",
               300 + 60 * TIMES), server_folder("nets") as folder, patient(150), \
            nothing_left(on_server, "in use at the server"), nothing_left(run, "in use at the client"), \
            second_server(), mounted("3", server=INSIDE) as at, \
            writers(folder, ("lasting", ["python3", "-c", WRITER, f"{at}/nets/lasting"])) as jobs:
        took = []
        for turn in range(TIMES):
            jobs.go_on(120)
            time.sleep(random.random())
            took.append(end_second())
            reload("server")
            begin_second()
        jobs.go_on(120)
        say(f"the namespace ended after {min(took):.1f} to {max(took):.1f} s, rounds {jobs.rounds()}")
        jobs.end()
        expect(max(took) < 20 * SLOWNESS, f"it took {max(took):.1f} s")


def refused():
    return run("dmesg").count("cannot connect to server")


def silent():
    with check("the server of mounts from a namespace is silent for a minute: nothing is lost", 500), \
            server_folder("nets") as folder, namespaces(1) as (net,), patient(600):
        unlike("client", "the C transport ends such attempts otherwise (C108c in decisions.md)")
        for vers in ("3", "4.2"):
            os.makedirs(f"/mnt/{vers}", exist_ok=True)
        with writers(folder, *((vers, ["ip", "netns", "exec", net.name, "sh", "-c",
                                       f"mount -t nfs -o {options(vers)} {SERVER}:{EXPORT} /mnt/{vers} && "
                                       f"exec python3 -c '{WRITER}' /mnt/{vers}/nets/{vers}"])
                               for vers in ("3", "4.2"))) as jobs:
            jobs.go_on(60)
            before = refused()
            on_server(f"tc qdisc add dev {NETDEV} root netem loss 100%")
            try:
                # It is said once for each mount.
                wait_for(lambda: refused() >= before + 2, 200, "attempts to connect have failed")
                time.sleep(5)
            finally:
                on_server(f"tc qdisc delete dev {NETDEV} root")
                mend()
            jobs.go_on(120)
            jobs.end()


if RDMA == "siw":
    with check("network namespaces"):
        raise Skip("siw connects from the first one only: Documentation/upstream-findings.md")
    done()
for part in (many, killed, inside, ends, silent):
    if part.__name__ in sys.argv[2:] or not sys.argv[2:]:
        part()
done()
