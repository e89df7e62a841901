# SPDX-License-Identifier: GPL-2.0
"""Work in the background: files that are written, read back and compared, again and again."""

import os
import random
import subprocess
import sys

from lib import *

BLOCK, BLOCKS = 64 << 10, 8


class Load:
    """One process at work in a directory of a mount, until the body of `with` ends.

    It is a process of its own: one with open files of the mount would wait for a server that is
    away when it starts another program.
    """

    def __init__(self, folder, name="load", direct=True):
        self.name, self.progress, self.noted = name, f"/tmp/load.{name}", 0
        write(self.progress, "0")
        self.process = subprocess.Popen(
            [sys.executable, __file__, f"{folder}/{name}", self.progress, str(int(direct))],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.process.kill()
        words = self.process.communicate(timeout=60 * SLOWNESS)[0]
        if kind is None:
            equal(words, "", f"words of the load {self.name}")

    def done(self):
        """Rounds that were written and compared."""
        expect(self.process.poll() is None, f"the load {self.name} ended by itself: "
               + (self.process.stdout.read() if self.process.poll() is not None else ""))
        return int(read(self.progress) or 0)

    def goes_on(self, seconds, rounds=2):
        """Wait until so many more rounds are done."""
        wanted = self.done() + rounds
        wait_for(lambda: self.done() >= wanted, seconds, f"the load {self.name} goes on")


def work(path, progress, direct):
    """In the other process."""
    room = buffer(bytes(BLOCK))
    noise = buffer(os.urandom(BLOCK * 2))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_DIRECT if direct else 0), 0o644)
    note = os.open(progress, os.O_WRONLY)
    rounds = 0
    while True:
        starts = [random.randrange(BLOCK // 4096) * 4096 for _ in range(BLOCKS)]
        for n, start in enumerate(starts):
            equal(os.pwrite(fd, noise[start:start + BLOCK], n * BLOCK), BLOCK, "bytes written")
        if not direct:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for n, start in enumerate(starts):
            got = os.preadv(fd, [room], n * BLOCK)
            if got != BLOCK:
                sys.exit(f"round {rounds}, block {n}: {got} bytes read instead of {BLOCK}, "
                         f"the file has {os.fstat(fd).st_size}")
            if room != noise[start:start + BLOCK]:
                sys.exit(f"round {rounds}, block {n}: what was read back differs")
        rounds += 1
        os.pwrite(note, b"%d" % rounds, 0)


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], sys.argv[3] == "1")
