# SPDX-License-Identifier: GPL-2.0
"""A peer without a kernel client sends the server hand-made messages, good and bad.

    raw.py [--seed S]

The seed is that of the messages made by chance: each of their connections has the same ones again, but
for keys and addresses.
"""

import argparse
import contextlib
import struct
from random import Random

from events import *
from lib import *
from peer import *

# What soft iWARP says of work requests that failed is something else, or nothing.
ROCE = RDMA != "siw"


def resources():
    # The context is ours, if we are on the server's machine.
    return on_server("rdma resource show").split("\n")[0].partition(" ctx ")[0]


parser = argparse.ArgumentParser()
parser.add_argument("--seed", default=f"{int.from_bytes(os.urandom(4), 'big'):08x}")
args = parser.parse_args()
baseline = resources()
say(baseline)

with check("a plain call"), connection() as peer:
    with shows(on_server, {"svcrdma_send_pullup": [r"hdr=28 msg=24 \(total 52\)"]}):
        good(peer)

with check("a call that comes again by another connection is answered again, not executed"):
    def mkdir(xid):
        with connection() as peer:
            # No mode, owner, size or times.
            peer.send(fixed(xid) + lists() + nfs3(xid, 9, ROOT, b"once") + words(0, 0, 0, 0, 0, 0))
            return answer(peer, xid)
    # The server remembers those of an earlier run for a while.
    xid = int.from_bytes(os.urandom(3), "big")
    try:
        first = mkdir(xid)
        equal(first[:28], accepted(xid) + words(0), "answer")
        equal(mkdir(xid), first, "answer to the same")
        equal(mkdir(xid + 1)[:28], accepted(xid + 1) + words(17), "answer to another call, for what is there")
    finally:
        on_server(f"rmdir {EXPORT}/once")

with check("credits 0 and 2^32-1"), connection() as peer:
    for credits in (0, 0xffffffff):
        peer.send(fixed(5, credits=credits) + lists() + null(5))
        equal(answer(peer, 5), accepted(5), "answer")

with check("less than a header"), connection() as peer:
    for size in (0, 1, 4, 7):
        peer.send(fixed(9)[:size]) if size else None
        silent(peer, 0.5)
    for size in (8, 12, 15):
        peer.send(fixed(9)[:size])
        error(peer, 9)
    good(peer)

with check("truncated lists"), connection() as peer:
    header = fixed(10) + lists([(0, 1, 2, 3)], [[(4, 5, 6)]], [(7, 8, 9)])
    for size in range(16, len(header), 4):
        peer.send(header[:size])
        error(peer, 10)
    good(peer)

with check("unknown versions"), connection() as peer:
    for version in (0, 2, 0xffffffff):
        peer.send(fixed(11, version=version) + lists() + null(11))
        data = error(peer, 11, ERR_VERS)
        equal(data[4:8], words(version), "version that is repeated")
        equal(data[20:], words(1, 1), "versions that are known")
    good(peer)

with check("other procedures"), connection() as peer:
    for proc in (RDMA_DONE, ERROR):
        peer.send(fixed(12, proc) + lists() + null(12))
        silent(peer, 0.5)
    for proc in (MSGP, 5, 0x80000000, 0xffffffff):
        peer.send(fixed(12, proc) + lists() + null(12))
        error(peer, 12)
    good(peer)

with check("no message at all"), connection() as peer:
    for proc in (MSG, NOMSG):
        peer.send(fixed(13, proc) + lists())
        error(peer, 13)
    good(peer)

with check("a reply to a call that was never made"), connection() as peer:
    peer.send(fixed(14) + lists() + words(14, 1, 0, 0, 0, 0))
    silent(peer)
    good(peer)

with check("bad chunks: refused, and the connection stays"), connection() as peer:
    for reads in ([(2, 1, 4, 0)], [(0xffffffff, 1, 4, 0)], [(4, 1, 0x80000000, 0)],
                  [(4, 1, 0xffffffff, 0)], [(0, 1, 0xffffffff, 0)] * 2,
                  [(4, 1, 16 << 20, 0)]):
        peer.send(fixed(15) + lists(reads) + null(15))
        error(peer, 15)
    for count in (0, 0x10000000, 0xffffffff):
        peer.send(fixed(15) + words(0, 1, count) + bytes(64))
        error(peer, 15)
        peer.send(fixed(15) + words(0, 0, 1, count) + bytes(64))
        error(peer, 15)
    good(peer)

for name, proc, reads in (
        ("position beyond the message", MSG, [(400, 1, 4, 0)]),
        ("position 2^31", MSG, [(0x80000000, 1, 4, 0)]),
        ("position 2^32-4", MSG, [(0xfffffffc, 1, 4, 0)]),
        ("overlapping chunks", MSG, [(4, 1, 64, 0), (8, 1, 4, 0)]),
        ("position beyond the long message", NOMSG, [(0, 1, 40, 0), (80, 1, 4, 0)]),
        ("nothing but empty segments", NOMSG, [(0, 1, 0, 0)]),
        ("more pages than there are", MSG, [(4, 1, 260 * PAGE - 64, 0), (260 * PAGE - 60, 1, 64, 0)]),
        ("pages exactly used up, then more", MSG,
         [(40, 1, 259 * PAGE - 40, 0), (259 * PAGE, 1, PAGE + 4, 0)])):
    with check(f"{name}: refused"), connection() as peer:
        peer.send(fixed(16, proc) + lists(reads) + null(16))
        error(peer, 16)
        good(peer)

with check("a key that the server may not use: the connection ends"):
    is_closed()
    with shows(on_server, {"svcrdma_wc_read_err": [r"status=REM_ACCESS_ERR \(10/"]} if ROCE else {}), \
            connection() as peer:
        # The Read is refused by our device, which may end the queue pair before the Send is complete.
        # Soft iWARP then completes no Receive of ours with an error: what counts is the server's end.
        with contextlib.suppress(Gone):
            peer.send(fixed(17) + lists([(40, 0x12345, 64, 0x1000)]) + null(17))
        is_closed()
        if ROCE:
            ends(peer)

# The Write and the Send behind it are one chain, of which one completion tells: that of the Send.
with check("a key that the server may not write with: the connection ends"), \
        shows(on_server, dict.fromkeys(("svcrdma_wc_write_flush", "svcrdma_wc_send_flush"),
                                       [r"status=WR_FLUSH_ERR \(5/"]) if ROCE else {}), \
        connection() as peer:
    with contextlib.suppress(Gone):
        peer.send(fixed(17) + lists((), [[(0x12345, 4, 0x1000)] * 30] * 2, [(0x12345, 40, 0x1000)]) + null(17))
    is_closed()
    if ROCE:
        ends(peer)

with check("a peer that takes no reply, and does not ask to try again: the connection ends"), \
        shows(on_server, dict.fromkeys(("svcrdma_wc_write_err", "svcrdma_wc_send_err"),
                                       [r"status=RNR_RETRY_EXC_ERR \(13/"]) if ROCE else {}):
    peer = Peer(receives=0)
    space = peer.space(64)
    key, at = space.rkey, space.buf
    with contextlib.suppress(Gone):
        peer.send(fixed(17) + lists((), [[(key, 4, at)] * 30] * 2, [(key, 40, at)]) + null(17))
    is_closed()
    peer.close()

with check("a message that is longer than any may be: the connection ends"), \
        shows(on_server, {"svcrdma_wc_recv_err": [r"status=\w+ \([1-9]"]} if ROCE else {}), \
        connection() as peer:
    with contextlib.suppress(Gone):
        peer.send(fixed(18) + lists() + null(18) + bytes(8192))
    is_closed()

with check("a long call, in segments of odd lengths"), connection() as peer:
    message = null(20, 99)
    rkey, addr = peer.memory(message)
    cuts = (0, 13, 14, 33, 40)
    reads = [(0, rkey, b - a, addr + a) for a, b in zip(cuts, cuts[1:])]
    peer.send(fixed(20, NOMSG) + lists(reads))
    equal(answer(peer, 20), accepted(20, 3), "answer: no such procedure")

with check("a long call with the rest inline"), connection() as peer:
    message = null(21, 99)
    rkey, addr = peer.memory(message)
    peer.send(fixed(21) + lists([(0, rkey, 20, addr)]) + message[20:])
    equal(answer(peer, 21), accepted(21, 3), "answer: no such procedure")

with check("a long call with chunks inserted, in any order"), connection() as peer:
    message = null(22, 99)
    rkey, addr = peer.memory(message)
    peer.send(fixed(22, NOMSG) + lists([(20, rkey, 4, addr + 20), (0, rkey, 4, addr), (4, rkey, 4, addr + 4),
                                        (0, rkey, 12, addr + 8), (0, rkey, 16, addr + 24)]))
    equal(answer(peer, 22), accepted(22, 3), "answer: no such procedure")

with check("several chunks in an inline call"), connection() as peer:
    message = null(23, 99)
    rkey, addr = peer.memory(message)
    inline = message[:4] + message[8:20] + message[24:]
    peer.send(fixed(23) + lists([(20, rkey, 4, addr + 20), (4, rkey, 4, addr + 4)]) + inline)
    equal(answer(peer, 23), accepted(23, 3), "answer: no such procedure")

with check("one chunk in the middle of an inline call"), connection() as peer:
    message = null(24, 99)
    rkey, addr = peer.memory(message)
    peer.send(fixed(24) + lists([(20, rkey, 4, addr + 20)]) + message[:20] + message[24:])
    equal(answer(peer, 24), accepted(24, 3), "answer: no such procedure")

for size in (1, 5, 7, 8):
    with check(f"a chunk of {size} bytes, with and without pad, alone and among others"), \
            connection() as peer:
        name = b"abcdefgh"[:size]
        message, at = null_named(25, name)
        rkey, addr = peer.memory(message)
        pad = -size % 4
        rest = message[at + size + pad:]
        for length in {size, size + pad}:
            peer.send(fixed(25) + lists([(at, rkey, length, addr + at)]) + message[:at] + rest)
            equal(answer(peer, 25), accepted(25), "answer, one chunk")
            reads = [(4, rkey, 4, addr + 4), (at, rkey, length, addr + at)]
            peer.send(fixed(25) + lists(reads) + message[:4] + message[8:at] + rest)
            equal(answer(peer, 25), accepted(25), "answer, two chunks")


@contextlib.contextmanager
def one_thread():
    """nfsd has one thread, so that it is the same page again."""
    threads = on_server("cat /proc/fs/nfsd/threads; echo 1 >/proc/fs/nfsd/threads").strip()
    try:
        yield
    finally:
        on_server(f"echo {threads} >/proc/fs/nfsd/threads")


def put(peer, xid, file, count, chunk):
    """The WRITE of so many bytes that the Read chunk has."""
    rkey, length, addr = chunk
    call = nfs3(xid, 7, file) + words(0, 0, count, 2, count)
    peer.send(fixed(xid) + lists([(len(call), rkey, length, addr)]) + call)
    equal(answer(peer, xid)[:28], accepted(xid) + words(0), "answer to WRITE")


with check("a client that leaves out padding gets nothing in its place of what others have written"), \
        server_folder("pad") as folder, connection() as peer, one_thread():
    on_server(f"echo -n >{folder}/file")
    file = handle(peer, handle(peer, ROOT, "pad"), "file")
    rkey, addr = peer.memory(b"A" * PAGE)
    for xid, (length, count) in enumerate(
            ((PAGE, PAGE), *((n, n + -n % 4) for n in (1, 2, 3, 5))), 0x2800):
        put(peer, xid, file, count, (rkey, length, addr))
        got = on_server(f"head -c {count} {folder}/file | od -An -v -tx1").split()
        equal("".join(got), "41" * length + "00" * (count - length), "what was written")

# nfsd looks for what is inline behind a chunk in the pages of the chunk: S43 in server.md.
with check("a symlink has its own target, however it is cut"), \
        server_folder("cut") as folder, connection() as peer, one_thread():
    on_server(f"echo -n >{folder}/file")
    root = handle(peer, ROOT, "cut")
    # It leaves a page without a NUL.
    rkey, addr = peer.memory(b"A" * PAGE)
    put(peer, 28, handle(peer, root, "file"), PAGE, (rkey, PAGE, addr))
    rkey, addr = peer.memory(b"B" * 4)
    call = nfs3(29, 10, root, b"link") + words(*[0] * 6, 1024)
    peer.send(fixed(29) + lists([(len(call), rkey, 4, addr)]) + call + b"C" * 1020)
    equal(answer(peer, 29)[:28], accepted(29) + words(0), "answer to SYMLINK")
    equal(on_server(f"readlink {folder}/link").strip(), "BBBB" + "C" * 1020, "target")

with check("an attribute of NFSv4.2 has its own value, however it is cut"), \
        server_folder("cut") as folder, connection() as peer, one_thread():
    on_server(f"echo -n >{folder}/file")
    file = handle(peer, handle(peer, ROOT, "cut"), "file")
    rkey, addr = peer.memory(b"A" * 4 * PAGE)
    key, at = peer.memory(b"B" * 3 * PAGE)
    tail = b"C" * 2000
    path = walk("export", "tmp", "cut", "file")
    session = Session(peer)

    def set_value(xid, length):
        """The status of SETXATTR, with a Read chunk of so many bytes of the value."""
        call = session.call(xid, *path, words(73, 0) + opaque(b"value") + words(length + len(tail)))
        peer.send(fixed(xid) + lists([(len(call), key, length, at)]) + call + tail)
        reply = answer(peer, xid)
        equal(reply[:24], accepted(xid), "answer to SETXATTR")
        return int.from_bytes(reply[24:28], "big")

    # Clients may be about to reclaim what they had.
    wait_for(lambda: set_value(28, 4) != 10013, 60, "the time of grace is over")
    for xid, length in enumerate((4, 1000, PAGE - 4, PAGE, PAGE + 4, 2 * PAGE, 3 * PAGE - 4), 0x2900):
        for again in range(4):
            put(peer, 0x2a00 + again, file, 4 * PAGE, (rkey, 4 * PAGE, addr))
        equal(set_value(xid, length), 0, "status of SETXATTR")
        got = bytes.fromhex(on_server(
            f"python3 -c 'import os; print(os.getxattr(\"{folder}/file\", \"user.value\").hex())'"))
        expect(got == b"B" * length + tail, f"the value of {length} and {len(tail)} bytes has "
               f"{got.count(b'A')} bytes of a former WRITE")
    session.end()

# A READ of NFSv4 is answered with pages of the file's cache. A service that is told in the middle of that
# that they cannot be sent takes the reply back, but not the pages, and writes what comes next to them.
with check("a file is what it was behind a READ that did not fit into its Write chunk"), \
        server_folder("kept") as folder, connection() as peer, one_thread():
    on_server(f"cd {folder}; head -c {8 * PAGE} /dev/zero | tr '\\0' A >file; mkdir many; cd many; "
              f"seq -f 'a-name-that-takes-some-room-%g' 300 | xargs touch")
    before = on_server(f"sha256sum {folder}/file")
    space = peer.space(16 * PAGE)
    key, at = space.rkey, space.buf
    session = Session(peer)
    path = walk("export", "tmp", "kept", "file")
    for xid in range(0x2b00, 0x2b08, 2):
        call = session.call(xid, *path, words(25) + bytes(16) + words(0, 0, 8 * PAGE))
        peer.send(fixed(xid) + lists((), [[(key, 4, at)]]) + call)
        if FLAVOURS["server"] == "rust":
            error(peer, xid)
        else:
            peer.recv()
        # READDIR: names alone, as many as fit into so many pages.
        call = session.call(xid + 1, *walk("export", "tmp", "kept", "many"),
                            words(26, 0, 0, 0, 0, 8 * PAGE, 8 * PAGE, 0))
        peer.send(fixed(xid + 1) + lists((), (), [(key, 16 * PAGE, at)]) + call)
        equal(struct.unpack_from(">4I", peer.recv())[3], NOMSG, "procedure of the reply to READDIR")
        equal(space.read(28, 0), accepted(xid + 1) + words(0), "beginning of that reply")
    session.end()
    equal(on_server(f"sha256sum {folder}/file"), before, "sum of the file")

with check("what is left of a reply whose payload is in a Write chunk goes to the Reply chunk, which has no room for both"), \
        server_folder("rest") as folder, connection() as peer:
    on_server(f"cd {folder}; head -c {8 * PAGE} /dev/zero | tr '\\0' A >file; mkdir many; cd many; "
              f"seq -f 'a-name-that-takes-some-room-%g' 300 | xargs touch")
    space = peer.space(11 * PAGE)
    key, at = space.rkey, space.buf
    session = Session(peer)
    call = session.call(0x2c00, *walk("export", "tmp", "rest", "file"), words(25) + bytes(16) + words(0, 0, 8 * PAGE),
                        *walk("export", "tmp", "rest", "many"), words(26, 0, 0, 0, 0, 2 * PAGE, 2 * PAGE, 0))
    payload, rest = (key, 8 * PAGE, at), at + 8 * PAGE
    peer.send(fixed(0x2c00) + lists((), [[payload]], [(key, 3 * PAGE, rest)]) + call)
    data = peer.recv()
    equal(struct.unpack_from(">4I", data)[3], NOMSG, "procedure of the reply")
    length = int.from_bytes(data[-12:-8], "big")
    equal(data[16:], lists((), [[payload]], [(key, length, rest)]), "lists of the reply")
    expect(PAGE < length <= 3 * PAGE, f"{length} bytes in the Reply chunk")
    expect(space.read(8 * PAGE, 0) == b"A" * 8 * PAGE, "the payload differs")
    equal(space.read(28, 8 * PAGE), accepted(0x2c00) + words(0), "beginning of the rest")
    session.end()

with check("what is counted: messages, and contexts for Reads and for Writes"), \
        server_folder("counted") as folder, connection() as peer:
    on_server(f"echo 0123456789 >{folder}/file")
    file = handle(peer, handle(peer, ROOT, "counted"), "file")
    rkey, addr = peer.memory(null(0x2c10, 99))
    space = peer.space(64)
    key, at = space.rkey, space.buf

    def grown(action):
        """By how much the three counters grow."""
        files = " ".join(f"/proc/sys/sunrpc/svc_rdma/rdma_stat_{name}" for name in ("recv", "read", "write"))
        before = on_server(f"cat {files}").split()
        action()
        return [int(new) - int(old) for new, old in zip(on_server(f"cat {files}").split(), before)]

    def long_call():
        peer.send(fixed(0x2c10, NOMSG) + lists([(0, rkey, 40, addr)]))
        equal(answer(peer, 0x2c10), accepted(0x2c10, 3), "answer")

    def file_read():
        peer.send(fixed(0x2c11) + lists((), [[(key, 7, at)]]) + nfs3(0x2c11, 6, file) + words(0, 0, 7))
        answer(peer, 0x2c11, header=lists((), [[(key, 7, at)]]))

    equal(grown(lambda: [good(peer) for _ in range(3)]), [3, 0, 0], "of three plain calls")
    equal(grown(long_call), [1, 1, 0], "of a long call")
    equal(grown(file_read), [1, 0, 1], "of a READ")

with check("a call is in a thread's hands once, when it is whole; what is no call never is"), connection() as peer:
    rkey, addr = peer.memory(null(0x2c12, 99))
    with traced(on_server, "sunrpc/svc_xdr_recvfrom") as events:
        peer.send(fixed(0x2c13, RDMA_DONE) + lists() + null(0x2c13))
        silent(peer, 0.5)
        peer.send(fixed(0x2c12, NOMSG) + lists([(0, rkey, 40, addr)]))
        equal(answer(peer, 0x2c12), accepted(0x2c12, 3), "answer")
        good(peer)
    equal([number(t, "xid") for t in of(events, "svc_xdr_recvfrom")], [0x2c12, 0x600d], "calls")

with check("chunks that are not needed come back empty, the Reply chunk not at all"), connection() as peer:
    space = peer.space(256)
    key, at = space.rkey, space.buf
    chunk = [(key, 64, at), (key, 32, at + 64)]
    for writes, reply in (([chunk], None), ([], chunk), ([chunk, chunk], chunk)):
        peer.send(fixed(30) + lists((), writes, reply) + null(30))
        empty = [(k, 0, a) for k, _, a in chunk]
        header = lists((), [empty] * len(writes))
        equal(answer(peer, 30, header=header), accepted(30), "answer")
    equal(space.read(256, 0), b"\xee" * 256, "memory")

with check("a long reply goes to the Reply chunk"), connection() as peer:
    space = peer.space(64)
    key, at = space.rkey, space.buf
    # We can take 1024 bytes: not the header of the reply with the 24 bytes that follow, but the header with
    # a Reply chunk.
    writes, reply = [[(key, 4, at)] * 30] * 2, [(key, 40, at)]
    equal(len(fixed(0) + lists((), writes)), 1004, "header of a reply with all inline")
    segments = [(n, 0) for _ in writes for n in range(30)] + [(0, 24)]
    with shows(on_server, {
            "svcrdma_post_reply_chunk": ["sqecount=2"], "svcrdma_post_write_chunk": [],
            "svcrdma_send_pullup": [], "svcrdma_wc_write": ["cid="], "svcrdma_wc_send": ["cid="],
            "svcrdma_encode_wseg": [f"segno={n} {size}@{at:#018x}:{key:#010x}" for n, size in segments]}):
        peer.send(fixed(31) + lists((), writes, reply) + null(31))
        data = peer.recv()
        time.sleep(0.5 * SLOWNESS)
    equal(struct.unpack_from(">4I", data)[3], NOMSG, "procedure of the reply")
    empty = [[(k, 0, a) for k, _, a in chunk] for chunk in writes]
    equal(data[16:], lists((), empty, [(key, 24, at)]), "lists of the reply")
    equal(space.read(24, 0), accepted(31), "what was written")
    equal(space.read(40, 24), b"\xee" * 40, "memory behind it")

with check("segments without bytes are passed over, in a Write chunk and in a Reply chunk"), \
        server_folder("empty") as folder, connection() as peer:
    on_server(f"echo 0123456789 >{folder}/file")
    file = handle(peer, handle(peer, ROOT, "empty"), "file")
    space = peer.space(256)
    key, at = space.rkey, space.buf

    def filled(*lengths):
        """A chunk whose last segments have been shortened to what was written."""
        return [(key, length, at + 64 * n) for n, length in enumerate(lengths)]

    peer.send(fixed(36) + lists((), [filled(0, 3, 0, 8)]) + nfs3(36, 6, file) + words(0, 0, 7))
    answer(peer, 36, header=lists((), [filled(0, 3, 0, 4)]))
    expected = bytearray(b"\xee" * 256)
    expected[64:67], expected[192:196] = b"012", b"3456"
    equal(space.read(256, 0), bytes(expected), "memory behind READ")
    # The 112 bytes of the reply do not fit behind the header, but it has room for a Reply chunk.
    writes = [[(key, 4, at)] * 30, [(key, 4, at)] * 27]
    peer.send(fixed(37) + lists((), writes, filled(0, 60, 0, 64)) + nfs3(37, 1, file))
    data = peer.recv()
    equal(struct.unpack_from(">4I", data)[3], NOMSG, "procedure of the reply")
    empty = [[(k, 0, a) for k, _, a in chunk] for chunk in writes]
    equal(data[16:], lists((), empty, filled(0, 60, 0, 52)), "lists of the reply")
    equal(space.read(28, 64), accepted(37) + words(0), "what was written first")
    equal(space.read(64, 128), b"\xee" * 64, "memory of the segment without bytes")
    equal(space.read(64, 192)[52:], b"\xee" * 12, "memory behind the reply")
    good(peer)

with check("a Reply chunk that is too short: an error"), connection() as peer:
    space = peer.space(64)
    key, at = space.rkey, space.buf
    with shows(on_server, {"svcrdma_small_wrch_err": ["remaining=1 seg_no=1 num_segs=1"],
                           "svcrdma_err_chunk": ["xid=0x00000020"]}):
        peer.send(fixed(32) + lists((), [[(key, 4, at)] * 30] * 2, [(key, 23, at)]) + null(32))
        error(peer, 32)
    equal(space.read(64, 0), b"\xee" * 64, "memory")
    good(peer)

with check("payload that does not fit into its Write chunk: an error, of which nothing is written"), \
        connection() as peer:
    on_server(f"cd {EXPORT} && echo 0123456789 >raw-read")
    file = handle(peer, ROOT, "raw-read")
    space = peer.space(64)
    key, at = space.rkey, space.buf
    # Of 7 bytes nfsd has put the padding into the reply when it hears of the chunk.
    for size in (8, 7):
        for room in ([(key, 4, at)], [(key, 2, at), (key, 4, at + 2)]):
            left, count = size - sum(length for _, length, _ in room), len(room)
            with shows(on_server, {"svcrdma_small_wrch_err":
                                   [f"remaining={left} seg_no={count} num_segs={count}"]}):
                peer.send(fixed(33) + lists((), [room]) + nfs3(33, 6, file) + words(0, 0, size))
                error(peer, 33)
    equal(space.read(64, 0), b"\xee" * 64, "memory")
    peer.send(fixed(34) + lists((), [[(key, 7, at)]]) + nfs3(34, 6, file) + words(0, 0, 7))
    answer(peer, 34, header=lists((), [[(key, 7, at)]]))
    equal(space.read(8, 0), b"0123456\xee", "memory")
    good(peer)
    on_server(f"rm {EXPORT}/raw-read")
    equal(int(on_server("cat /proc/sys/kernel/tainted")) & 1 << 9, 0, "warnings of the server's kernel")

with check("more calls at once than there are nfsd threads"), connection() as peer:
    for _ in range(24):
        peer.post()
    for xid in range(100, 132):
        peer.send(fixed(xid) + lists() + null(xid))
    got = set()
    for _ in range(32):
        data = peer.recv()
        got.add(struct.unpack_from(">I", data)[0])
    equal(got, set(range(100, 132)), "calls that were answered")

def getattr_call(xid):
    """GETATTR of NFS 3 with a handle that is none, for which the server asks who we are."""
    return words(xid, 0, 2, 100003, 3, 1, 0, 0, 0, 0, 4, 0)


with check("calls that are put aside while the server asks its mountd"), server_folder("aside") as folder:
    on_server(f"echo 0123456789 >{folder}/file")
    with connection() as peer:
        file = handle(peer, handle(peer, ROOT, "aside"), "file")
    # Their arguments are copied by sunrpc meanwhile: all that is in the message, and nothing else.
    shapes = (lists(), lists([(40, 0, 0, 0)]), lists([(4, 0, 0, 0), (40, 0, 0, 0)]))
    peers = [Peer() for _ in shapes]
    # Their chunks are remembered: one for payload, and one for a reply that does not fit behind its header.
    reader, long = Peer(), Peer()
    space, room = reader.space(16), long.space(128)
    payload, key, at = [[(space.rkey, 8, space.buf)]], room.rkey, room.buf
    many = [[(key, 4, at)] * 30, [(key, 4, at)] * 27]
    on_server("kill -STOP $(pidof rpc.mountd); exportfs -f")
    try:
        for xid, (peer, header) in enumerate(zip(peers, shapes), 50):
            peer.send(fixed(xid) + header + getattr_call(xid))
        reader.send(fixed(60) + lists((), payload) + nfs3(60, 6, file) + words(0, 0, 8))
        long.send(fixed(61) + lists((), many, [(key, 128, at)]) + nfs3(61, 1, file))
        time.sleep(8)
        for peer in (*peers, reader, long):
            silent(peer, 0.1)
    finally:
        on_server("kill -CONT $(pidof rpc.mountd)")
    for xid, peer in enumerate(peers, 50):
        equal(answer(peer, xid), accepted(xid) + words(10001), "answer: a bad handle")
        peer.close()
    answer(reader, 60, header=lists((), payload))
    equal(space.read(16, 0), b"01234567" + b"\xee" * 8, "what was read")
    equal(struct.unpack_from(">4I", long.recv())[3], NOMSG, "procedure of the long reply")
    equal(room.read(28, 0), accepted(61) + words(0), "beginning of the long reply")
    reader.close()
    long.close()

with check("twenty connections that end without a word"):
    peers = [Peer(receives=2) for _ in range(20)]
    for peer in peers:
        peer.send(fixed(40) + lists() + null(40))
    for peer in peers:
        peer.close()
    wait_for(lambda: not server_connections(), 60, "the connections are gone")

# sunrpc keeps 64 connections of peers that it knows nothing of, and closes the oldest for the next one.
with check("more connections of peers that nobody knows than sunrpc keeps", 200):
    if RDMA == "siw":
        raise Skip("the test's machine makes no more than 24 there (ENOSPC)")
    crowd = [subprocess.Popen([sys.executable, "-c", "from peer import *\n"
                               "kept = [Peer(receives=1) for _ in range(40)]\n"
                               "print('made', flush=True)\n"
                               "sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
             for _ in range(3)]
    try:
        for job in crowd:
            equal(job.stdout.readline(), "made\n", "what one says who makes forty connections")
        wait_for(lambda: len(server_connections()) <= 66, 60, "the oldest are gone")
        expect(len(server_connections()) >= 60, "more than that are gone")
    finally:
        for job in crowd:
            job.communicate()
    wait_for(lambda: not server_connections(), 60, "the connections are gone")

with check("a peer that takes no replies is given up, one that is silent is not", 150):
    if RDMA == "siw":
        raise Skip("iWARP never waits for a Receive: a message without one ends the connection")
    with connection() as idle:
        good(idle)
        before = server_connections()
        # The server's device is asked to try again for ever.
        stuck = Peer(receives=0, retry=7, rnr_retry=7)
        stuck.send(fixed(60) + lists() + null(60))
        equal(len(server_connections() - before), 1, "connections with the new one")
        wait_for(lambda: server_connections() <= before, 60, "the connection of the stuck peer is gone")
        time.sleep(25)
        good(idle)
    stuck.close()

with check("peers that vanish are noticed within a minute", 150):
    peers = [Peer() for _ in range(3)]
    for peer in peers[1:]:
        good(peer)
    link("down", "client")
    try:
        wait_for(lambda: not server_connections(), 60, "the connections are gone")
    finally:
        link("up", "client")
    for peer in peers:
        peer.close()

def chance(peer, random):
    """A message with parts that make sense and others that do not."""
    words_ = (0, 1, 2, 3, 4, 5, 8, 28, 39, 40, 41, 4095, 4096, 4097, 1 << 20, 0x7fffffff, 0x80000000,
              0xfffffffc, 0xffffffff)

    def segment():
        length = random.choice((0, 1, 3, 4, 5, 40, 4000, 4096, 8192, 12288, random.choice(words_)))
        rkey, at = random.choice(((peer.space_.rkey, peer.space_.buf), peer.memory_))
        return rkey if random.random() < 0.97 else random.choice(words_), length, at

    def chunk():
        return [segment() for _ in range(random.choice((0, 1, 1, 1, 2, 3, 9)))]

    reads = [(random.choice((0, 0, 4, 40, 40, 40, random.choice(words_))), *segment())
             for _ in range(random.choice((0, 0, 0, 1, 1, 2, 5)))]
    writes = [chunk() for _ in range(random.choice((0, 0, 1, 2)))]
    message = fixed(random.choice(words_), random.choice((MSG, MSG, MSG, NOMSG, random.choice(words_))))
    message += lists(reads, writes, random.choice((None, chunk())))
    xid = random.choice(words_)
    message += random.choice((null(xid), null(xid, 99), getattr_call(xid), null_named(xid, b"abcde")[0],
                              b"", words(xid, 1, 0, 0, 0, 0), random.randbytes(random.randrange(2000))))
    message = bytearray(message)
    for _ in range(random.choice((0, 0, 0, 1, 3))):
        at = random.randrange(len(message)) & ~3
        message[at:at + 4] = words(random.choice(words_))
    return bytes(message[:random.choice((4096, 4096, random.randrange(1, 4096)))])


with check("messages made by chance"):
    say(f"seed {args.seed}")
    end, count, answers, peers, ended = time.monotonic() + 30, 0, 0, 0, 0
    while time.monotonic() < end:
        with connection() as peer:
            # Where one ends depends on time; what the next one sends must not.
            random = Random(f"{args.seed}/{peers}")
            peers += 1
            peer.space_ = peer.space(3 * PAGE)
            peer.memory_ = peer.memory(null(70, 99) * 307)
            for _ in range(random.choice((0, 1, 3, 30, 100))):
                try:
                    peer.send(chance(peer, random))
                    count += 1
                    # Answers, if there are any; of some the server has to get rid alone.
                    if random.random() < 0.9:
                        peer.recv(0.05)
                        answers += 1
                except Quiet:
                    pass
                except Gone:
                    ended += 1
                    break
    say(f"{count} messages, {answers} answers on {peers} connections, {ended} of them ended by the server")
    expect(count > 50 / SLOWNESS and answers > 5 / SLOWNESS, "hardly any")
    with connection() as peer:
        good(peer)

with check("an ordinary mount works, and nothing is left over"):
    with mounted("4.2") as at:
        data = random_bytes(100000)
        write_file(f"{at}/raw", data)
        expect(read_file(f"{at}/raw", direct=True) == data, "data differ")
        os.unlink(f"{at}/raw")
    wait_for(lambda: resources() == baseline, 60, f"{baseline}, instead {resources()}")
done()
