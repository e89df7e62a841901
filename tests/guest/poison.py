# SPDX-License-Identifier: GPL-2.0
"""Reads that are given up while the server is at work on them: what comes late hits no memory.

The kernel fills pages that are free, and looks at them when they are used again (page_poison=1): its
complaint fails the run. What this test fills itself right after, and other data, stay as they are.
"""

import random
import signal
import subprocess
import sys
import time

from events import *
from lib import *
from load import Load

SIZE = 8 << 20
BLOCK = 256 << 10
BALLAST = 96 << 20
READER = """
import mmap, os, sys
sys.stdout.write("begun"); sys.stdout.flush()
while True:
    if sys.argv[2] == "list":
        for name in os.listdir(sys.argv[1]):
            pass
        continue
    room = mmap.mmap(-1, %d)
    fd = os.open(sys.argv[1], os.O_RDONLY | (os.O_DIRECT if sys.argv[2] == "direct" else 0))
    if sys.argv[2] != "direct":
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for at in range(0, %d, %d):
        os.preadv(fd, [room], at)
    os.close(fd)
""" % (BLOCK, SIZE, BLOCK)


def ballast():
    """Fill memory that was free a moment ago; a function that looks whether it is as it was."""
    room, page = mmap.mmap(-1, BALLAST), os.urandom(4096)
    for at in range(0, BALLAST, 4096):
        room[at:at + 4096] = page

    def whole():
        for at in range(0, BALLAST, 4096):
            expect(room[at:at + 4096] == page, f"memory has changed at {at:#x}")
        room.close()
    return whole


def readers(at):
    jobs = [subprocess.Popen([sys.executable, "-SE", "-c", READER, f"{at}/poison/{name}", how],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            for name, how in (("f", "direct"), ("g", "direct"), ("f", "cached"), ("many", "list"))]
    for job in jobs:
        job.stdout.read(5)
    return jobs


@contextlib.contextmanager
def standing(jobs):
    """The server's machine stands still in the body, with calls of these jobs on their way to it."""
    time.sleep(random.random() / 2)
    run("on-host", "stop server")
    try:
        equal([job.poll() for job in jobs], [None] * len(jobs), "states of the readers")
        yield
    finally:
        run("on-host", "cont server")


def ended(jobs):
    for job in jobs:
        job.kill()
        job.wait(60 * SLOWNESS)


def ends_calls(at, jobs):
    """End the calls that there are: a job that has none at the moment goes on."""
    # Without the helper, which asks the server's mountd, and waits for it.
    run("umount", "-i", "-f", at, ok=False)
    time.sleep(0.2)
    return all(job.poll() is not None for job in jobs)


def intact(at):
    for name in "fg":
        expect(read_file(f"{at}/poison/{name}", direct=True) == DATA[name], "data differ afterwards")


with check("the kernel poisons pages that are free, and looks at them later"):
    expect("page_poison=1" in read("/proc/cmdline").split(), "page_poison=1 is not there")
    with probes(run, "p:probe_look __kernel_unpoison_pages") as events:
        ballast()()
    expect(len(of(events, "probe_look")) > 100, "nobody looks")

DATA = {name: random_bytes(SIZE, seed) for seed, name in enumerate("fg")}
TURNS = 20 if LONG else 6
with server_folder("poison") as folder:
    on_server(f"mkdir -m 777 {folder}/many; cd {folder}/many; "
              "for n in $(seq 300); do : >a-long-name-of-a-file-$n; done")
    with mounted("3") as at:
        for name in "fg":
            write_file(f"{at}/poison/{name}", DATA[name], direct=True)
    for vers in ("3", "4.2"):
        with check(f"v{vers}: readers are killed while the server is at work, {TURNS} times", 400), \
                mounted(vers, "noac") as at:
            for turn in range(TURNS):
                jobs = readers(at)
                with standing(jobs):
                    for job in jobs:
                        job.send_signal(signal.SIGKILL)
                    # What goes through the page cache stays until it was read.
                    wait_for(lambda: all(job.poll() is not None for job in jobs[:2]), 30, "direct readers are gone")
                    whole = ballast()
                time.sleep(0.5)
                ended(jobs)
                whole()
                intact(at)
        with check(f"v{vers}: calls are ended by umount -f while the server is at work, {TURNS} times", 400), \
                mounted(vers, "noac") as at:
            # It ends calls, and no more than that, since the mount is in use.
            top = os.open(at, os.O_RDONLY)
            try:
                for turn in range(TURNS):
                    jobs = readers(at)
                    with standing(jobs):
                        # What goes through the page cache is read again.
                        wait_for(lambda: ends_calls(at, jobs[:2]), 30, "the calls have ended")
                        whole = ballast()
                    time.sleep(0.5)
                    ended(jobs)
                    whole()
                    intact(at)
            finally:
                os.close(top)
        with check(f"v{vers}: soft calls time out while the server is at work, {TURNS // 2} times", 400):
            for turn in range(TURNS // 2):
                with mounted(vers, "soft,timeo=10,retrans=1,noac") as at:
                    jobs = readers(at)
                    with standing(jobs):
                        for job in jobs[:3]:
                            job.wait(60 * SLOWNESS)
                        whole = ballast()
                    time.sleep(0.5)
                    ended(jobs)
                    whole()
            with mounted(vers) as at:
                intact(at)
done()
