# SPDX-License-Identifier: GPL-2.0
"""Connections lost in the middle of work: data stay intact, and everything goes on."""

import concurrent.futures
import os
import random
import signal
import subprocess
import sys
import time

from disk import frozen_disk
from lib import *

SIZE = 32 << 20
CHUNK = 256 << 10


class Copy:
    """Write a file and read it back in another process, slowly enough to be interrupted.

    This process must have no file of the mount open: what it starts would wait for the server when
    it closes its copy of the file, and could not bring the server up again.
    """

    def __init__(self, path, direct):
        write("/tmp/progress", "0")
        self.process = subprocess.Popen([sys.executable, __file__, "copy", path, str(int(direct))],
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def done(self):
        return int(read("/tmp/progress") or 0)

    def over(self):
        return self.process.poll() is not None

    def wait(self, limit):
        """Output of the copier, empty if all was well."""
        try:
            return self.process.communicate(timeout=limit * SLOWNESS)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Failed(f"copy hangs at {self.done() >> 20} MiB, {limit} s later")


def copy(path, direct):
    """In the other process."""
    with open("/tmp/data", "rb") as f:
        data = buffer(f.read())
    fd = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_DIRECT if direct else 0), 0o644)
    progress = os.open("/tmp/progress", os.O_WRONLY)
    at = 0
    while at < SIZE:
        at += os.pwrite(fd, data[at:at + CHUNK], at)
        os.pwrite(progress, b"%d" % at, 0)
        time.sleep(0.02)
    os.fsync(fd)
    os.close(fd)
    if read_file(path, direct) != data:
        sys.exit("what was read back differs")


if sys.argv[1:2] == ["copy"]:
    sys.exit(copy(sys.argv[2], sys.argv[3] == "1"))
DATA = random_bytes(SIZE)
with open("/tmp/data", "wb") as f:
    f.write(DATA)


def through(vers, direct, disturb, limit, breaks=True):
    """Copy while disturb() happens, and compare on both sides; did it break the connection?

    Returns how many connections were made.
    """
    # Who writes through the page cache sleeps for as long as the server is away, and somewhat longer.
    with patient(150), server_folder("r") as folder, mounted(vers) as at:
        before = xprt_stats(at)["connect_count"]
        copier = Copy(f"{at}/r/f", direct)
        wait_for(lambda: copier.done() > SIZE // 8 or copier.over(), 60, "an eighth copied")
        begun = time.monotonic()
        reached = copier.done()
        disturb()
        say(f"disturbed at {reached >> 20} MiB for {time.monotonic() - begun:.1f} s")
        expect(reached < SIZE, "the copy was over before the disturbance")
        equal(copier.wait(limit), "", "words of the copier")
        made = xprt_stats(at)["connect_count"] - before
        say(f"whole again {time.monotonic() - begun:.1f} s after the disturbance; "
            f"connections made: {made}")
        expect(made or not breaks, "the connection was never lost")
        equal(server_sums(folder)["f"], sha(DATA), "sum on the server")
        return made


def restart():
    on_server("nfsd-down")
    time.sleep(1)
    on_server("nfsd-up")


def kind(vers, direct):
    return f"v{vers} {'O_DIRECT' if direct else 'buffered'}"


for vers, direct in (("3", True), ("4.2", False), *LONG * (("4.0", False), ("4.2", True))):
    with check(f"{kind(vers, direct)}: nfsd restarts in the middle of a copy", 240):
        through(vers, direct, restart, 180)
# The first is within the retries of the queue pair, the second beyond them. TCP, below siw, does not
# give up.
for vers, direct in (("3", True), ("4.2", False)):
    for seconds in (2, 20) if LONG or vers != "3" else (20,):
        with check(f"{kind(vers, direct)}: link down for {seconds} s in the middle of a copy", 300):
            through(vers, direct, unplug(seconds), 240, breaks=seconds > 2 and RDMA == "rxe")


def without_device():
    run("rdma", "link", "delete", f"{RDMA}0")
    # Attempts to connect are 12 s and more apart by then.
    time.sleep(25)
    count = xprt_stats()["connect_count"]
    run("rdma", "link", "add", f"{RDMA}0", "type", RDMA, "netdev", NETDEV)
    begun = time.monotonic()
    wait_for(lambda: xprt_stats()["connect_count"] > count, 60, "another connection")
    took = time.monotonic() - begun
    say(f"connected {took:.1f} s after the device was back")
    expect(took < min(6 * SLOWNESS, 11) or MODULE != "rpcrdma_rust", "nobody noticed that the device is back")


with check("v4.2 O_DIRECT: no device for 25 s in the middle of a copy", 240):
    if NODES == 1:
        raise Skip("it is the server's device too")
    made = through("4.2", True, without_device, 180)
    # What failed meanwhile must not be held against the new connection.
    expect(made == 1 or MODULE != "rpcrdma_rust", f"{made} connections were made")



def slow_call():
    """A call that the server is at work on, sent again by the next connection, is not answered until its own time is
    over: nfsd knows it. Others are not to wait for it."""
    def file(n):
        return f"/mnt/slow/{n}"

    threads = on_server("cat /proc/fs/nfsd/threads").strip()
    with frozen_disk() as disk, concurrent.futures.ThreadPoolExecutor(4) as pool:
        os.makedirs("/mnt/slow", exist_ok=True)
        on_server("echo 16 >/proc/fs/nfsd/threads")
        run("mount", "-t", "nfs", "-o", options("3") + ",noac", f"{SERVER}:{disk}", "/mnt/slow")
        try:
            for n in range(5):
                write_file(file(n), bytes(4096), direct=True)
            transport, = transports()
            on_server(f"fsfreeze -f {disk}")
            jobs = []
            try:
                jobs += [pool.submit(write_file, file(n), bytes(65536), direct=True) for n in range(4)]
                wait_for(lambda: on_server("ps -C nfsd -o stat=").count("D") >= 4, 20, "four calls at work")
                before = xprt_stats("/mnt/slow")["connect_count"]
                write(transport + "/dstaddr", SERVER + "\n")
                wait_for(lambda: xprt_stats("/mnt/slow")["connect_count"] > before, 20, "another connection")
                begun = time.monotonic()
                for n in range(4):
                    os.stat(file(4))
                took = time.monotonic() - begun
                say(f"four others took {took:.2f} s")
                expect(took < 5 * SLOWNESS, "others waited")
                equal(xprt_stats("/mnt/slow")["connect_count"] - before, 1, "connections made")
            finally:
                on_server(f"fsfreeze -u {disk}")
                ends = [job.exception(150 * SLOWNESS) for job in jobs]
            equal(ends, [None] * 4, "how the four ended")
        finally:
            run("umount", "/mnt/slow", timeout=150)
            on_server(f"echo {threads} >/proc/fs/nfsd/threads")


with check("calls that the server is at work on when the connection ends keep no others from the next one", 300):
    if MODULE != "rpcrdma_rust":
        raise Skip("Documentation/upstream-findings.md")
    slow_call()

BUSY = """
import mmap, os, sys
room = mmap.mmap(-1, 1 << 20)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
at = 0
while True:
    (os.pwritev if sys.argv[2] == "w" else os.preadv)(fd, [room], at)
    at = (at + (1 << 20)) % (16 << 20)
"""

for vers in ("3", "4.2"):
    with check(f"v{vers}: kill -9 in the middle of direct I/O, ten times", 240), \
            server_folder("k") as folder, mounted(vers) as at:
        write_file(f"{at}/k/r", DATA[:16 << 20], direct=True)
        for turn in range(10):
            sent = xprt_stats(at)["sends"]
            jobs = [subprocess.Popen(["python3", "-SE", "-c", BUSY, f"{at}/k/{mode}", mode])
                    for mode in "rw"]
            wait_for(lambda: xprt_stats(at)["sends"] > sent + 20, 30, "they read and write")
            time.sleep(random.random())
            for job in jobs:
                expect(job.poll() is None, "direct I/O failed by itself")
                job.send_signal(signal.SIGKILL)
            for job in jobs:
                equal(job.wait(30 * SLOWNESS), -signal.SIGKILL, "exit of the killed job")
        expect(read_file(f"{at}/k/r", direct=True) == DATA[:16 << 20], "data differ afterwards")

with check("kill -9 of direct I/O while the server is gone", 240), mounted("4.2") as at:
    sent = xprt_stats(at)["sends"]
    job = subprocess.Popen(["python3", "-SE", "-c", BUSY, f"{at}/k", "w"])
    wait_for(lambda: xprt_stats(at)["sends"] > sent + 20, 30, "it writes")
    on_server("nfsd-down")
    time.sleep(2)
    expect(job.poll() is None, "direct I/O ended by itself")
    job.send_signal(signal.SIGKILL)
    try:
        equal(job.wait(30 * SLOWNESS), -signal.SIGKILL, "exit of the killed job")
    finally:
        on_server("nfsd-up")
    write_file(f"{at}/k", b"after", direct=True)
    equal(on_server(f"cat {EXPORT}/k; rm {EXPORT}/k"), "after", "content on the server")
done()
