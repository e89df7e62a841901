# SPDX-License-Identifier: GPL-2.0
"""READ and WRITE of sizes around every threshold: the inline limits, multiples of 4, pages, segments,
rsize and wsize; to and from memory that begins anywhere in a page. Whatever else the memory and the
file have stays as it was.
"""

import mmap
import os

from lib import *

INLINE = {name: "/proc/sys/sunrpc/rdma_max_inline_" + name for name in ("read", "write")}
LARGE = 1 << 20
FILL = b"\xa5"
GUARD = 4096
SPACE = mmap.mmap(-1, LARGE + 4 * GUARD)
random_bytes(LARGE + GUARD)


def around(*places):
    return [place + n for place in places for n in range(-8, 9) if place + n > 0]


def write_one(fd, at, data, offset):
    """WRITE from memory that begins `offset` bytes behind the beginning of a page."""
    room = memoryview(SPACE)[offset:offset + len(data)]
    room[:] = data
    equal(os.pwrite(fd, room, at), len(data), "bytes written")


def read_one(fd, at, data, offset):
    """READ likewise; no byte around may change."""
    size = len(data)
    SPACE[:size + offset + GUARD] = FILL * (size + offset + GUARD)
    equal(os.preadv(fd, [memoryview(SPACE)[offset:offset + size]], at), size, "bytes read")
    expect(SPACE[offset:offset + size] == data, f"{size} bytes at {offset}: data differ")
    expect(SPACE[:offset] == FILL * offset, f"{size} bytes at {offset}: bytes before are overwritten")
    expect(SPACE[offset + size:offset + size + GUARD] == FILL * GUARD,
           f"{size} bytes at {offset}: bytes behind are overwritten")


def counts(at):
    stats = xprt_stats(at)
    return stats["read_chunk_count"], stats["write_chunk_count"]


def sweep(at, folder, sizes, offsets, both=False):
    """Each size has its place in a file, one byte behind the one before. With `both`, some of these
    have to go inline, and some with chunks."""
    path, image, places = f"{at}/thresholds/f", bytearray(), []
    for number, size in enumerate(sizes):
        image += FILL
        places.append((len(image), size, number % 64, offsets[number % len(offsets)]))
        image += random_bytes(size, number % 64)
    with open(path, "wb") as f:
        f.write(FILL * len(image))
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        before = counts(at)
        for place, size, seed, offset in places:
            write_one(fd, place, random_bytes(size, seed), offset)
        written = counts(at)
        digest = on_server(f"sha256sum {folder}/f").split()[0]
        equal(digest, sha(image), "sha256 of the file on the server")
        for place, size, seed, offset in places:
            read_one(fd, place, random_bytes(size, seed), offset)
        chunks = written[0] - before[0], counts(at)[1] - written[1]
        if both:
            say(f"{len(sizes)} sizes: {chunks[0]} Read chunks, {chunks[1]} Write chunks")
            for count in chunks:
                expect(0 < count < len(sizes), f"chunks for {count} of {len(sizes)} sizes")
    finally:
        os.close(fd)
    equal(xprt_stats(at)["connect_count"], 1, "connections made")


@contextlib.contextmanager
def inline(size):
    old = {name: read(path) for name, path in INLINE.items()}
    try:
        for path in INLINE.values():
            write(path, str(size))
        yield
    finally:
        for name, path in INLINE.items():
            write(path, old[name])


with server_folder("thresholds") as folder:
    for vers in VERSIONS if LONG else ("3", "4.2"):
        # The client may use no more than it can say: multiples of 1024.
        for size in (1024, 2000, 4096, 65536) if LONG else (1024, 2000, 4096):
            with check(f"v{vers}: around the inline limit of {size} bytes", 400), inline(size), \
                    mounted(vers) as at:
                limit = min(size, 4096)
                real = limit // 1024 * 1024
                sizes = [*range(real - 420, real + 9, 1 if LONG else 3), *range(real + 76, limit, 100)]
                sweep(at, folder, [n for n in sizes if n > 0], (0, 1, 4093), True)
        with check(f"v{vers}: few bytes, around pages and segments", 400), mounted(vers) as at:
            sizes = [*range(1, 10), *around(4096, 8192, 32768, 65536)]
            sweep(at, folder, sizes, (0, 1, 2, 3, 4, 2047, 4092, 4093, 4095))
        with check(f"v{vers}: around rsize and wsize", 400), \
                mounted(vers, "rsize=16384,wsize=16384") as at:
            sweep(at, folder, around(16384, 32768), (0, 1, 4095))
        with check(f"v{vers}: around the largest size", 400), mounted(vers) as at:
            sizes = around(LARGE - 4096, LARGE) if LONG else [LARGE + n for n in (-4096, -4, -1, 0, 1, 5)]
            sweep(at, folder, sizes, (0, 1, 4095))
done()
