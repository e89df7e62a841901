# SPDX-License-Identifier: GPL-2.0
"""Hand-made calls of NFSv4.0 whose results have payload: which byte of it goes where, and what happens
when there is no room for it.

Two checks are for our server: the C module leaves the chunk of payload of no bytes for the next one, and has nfsd
cut its reply off where payload is longer than its chunk (X36 and S52 in Documentation/server.md).
"""

import struct

from events import *
from lib import *
from peer import *

GETATTR, READ, READLINK = 9, 25, 27
LINK = "/a/name/of/no/file"


def read_op(count, offset=0):
    """READ with the stateid of those who have not opened the file."""
    return words(READ) + bytes(16) + struct.pack(">QI", offset, count)


# The kind of the object: a word behind bitmap and length.
GETATTR_TYPE = words(GETATTR, 1, 2)
TYPES = {"f": 1, "link": 5}


def type_result(name):
    return words(GETATTR, 0, 1, 2, 4, TYPES[name])


def begin(xid, count, walked, status=0):
    """A reply up to the results that are of interest."""
    return (accepted(xid) + words(status, 0, count, PUTROOTFH, 0) + words(LOOKUP, 0) * walked)


def path(name):
    return walk("export", "tmp", "calls", name)


def call(peer, xid, ops, writes, reply=None):
    peer.send(fixed(xid) + lists((), writes, reply) + compound(xid, 0, *ops))


def filled(chunk, size):
    """The chunk as it comes back with so many bytes in it."""
    out = []
    for key, length, at in chunk:
        out.append((key, min(length, size), at))
        size -= min(length, size)
    return out


def whole(peer, xid, chunks, sizes):
    """The message of a reply, in which these chunks have these numbers of bytes."""
    header = lists((), [filled(*c) for c in zip(chunks, sizes)])
    return answer(peer, xid, header=header)


class Room:
    """Memory for a Write chunk, in segments of these lengths."""

    def __init__(self, peer, *lengths):
        self.size = sum(lengths) + 16
        self.space = peer.space(self.size)
        at, self.chunk = self.space.buf, []
        for length in lengths:
            self.chunk.append((self.space.rkey, length, at))
            at += length

    def expect(self, data, what):
        equal(self.space.read(self.size, 0), data + b"\xee" * (self.size - len(data)), what)


data = random_bytes(5000)
on_server(f"rm -rf {EXPORT}/calls; mkdir {EXPORT}/calls; cd {EXPORT}/calls; ln -s {LINK} link")
on_server("python3 -c 'import sys; sys.stdout.buffer.write(bytes.fromhex(sys.argv[1]))' "
          f"{data.hex()} >{EXPORT}/calls/f")

with check("NFS answers a compound without chunks"), connection() as peer:
    # The time in which clients may reclaim what they had has to be over.
    def ready():
        call(peer, 1, path("f") + [read_op(4)], ())
        return peer.recv()[28:] == begin(1, 6, 4) + words(READ, 0, 0) + opaque(data[:4])
    wait_for(ready, 60, "a READ succeeds")

for size in (1, 2, 3, 4, 5, 4095, 4096, 4097):
    with check(f"payload of {size} bytes leaves the message together with its pad"), \
            connection() as peer:
        room = Room(peer, 3, 2, 5000)
        call(peer, 2, path("f") + [read_op(size), GETATTR_TYPE], [room.chunk])
        equal(whole(peer, 2, [room.chunk], [size]),
              begin(2, 7, 4) + words(READ, 0, 0, size) + type_result("f"), "message")
        room.expect(data[:size], "memory")

with check("payload goes to the chunks in order, what is behind them inline"), connection() as peer:
    # Links, because nfsd looks for the data of a second READ in the wrong page. Their payload begins
    # with the word that counts it, as far as nfsd is concerned.
    rooms = [Room(peer, 100), Room(peer, 3, 97)]
    item, size = opaque(LINK.encode()), len(LINK)
    rest = words(READLINK, 0) + item[size + -size % 4:]
    call(peer, 3, path("link") + [words(READLINK)] * 3 + [GETATTR_TYPE], [r.chunk for r in rooms])
    equal(whole(peer, 3, [r.chunk for r in rooms], [size] * 2),
          begin(3, 9, 4) + rest * 2 + words(READLINK, 0) + item + type_result("link"), "message")
    for room in rooms:
        room.expect(item[:size], "memory")

with check("payload of no bytes uses up its chunk"), connection() as peer:
    unlike("server", "the C module leaves the chunk for the next payload")
    rooms = [Room(peer, 10), Room(peer, 10)]
    call(peer, 10, path("f") + [read_op(7, len(data)), read_op(5)], [r.chunk for r in rooms])
    equal(whole(peer, 10, [r.chunk for r in rooms], [0, 5]),
          begin(10, 7, 4) + words(READ, 0, 1, 0) + words(READ, 0, 0, 5), "message")
    rooms[0].expect(b"", "first chunk")

with check("payload that is longer than its chunk: ERR_CHUNK, and nothing is written"), \
        connection() as peer:
    # nfsd does not hear of it: it would warn that it cannot take pages back from its reply.
    room = Room(peer, 3, 3)
    call(peer, 4, path("f") + [read_op(7)], [room.chunk])
    error(peer, 4)
    room.expect(b"", "memory")
    good(peer)

with check("a symlink: what nfsd calls payload is what is written"), connection() as peer:
    room = Room(peer, 7, 100)
    call(peer, 5, path("link") + [words(READLINK), GETATTR_TYPE], [room.chunk])
    link = LINK.encode()
    item = opaque(link)
    pad = len(link) + -len(link) % 4
    equal(whole(peer, 5, [room.chunk], [len(link)]),
          begin(5, 7, 4) + words(READLINK, 0) + item[pad:] + type_result("link"), "message")
    room.expect(item[:len(link)], "memory")

with check("what is read for one call is one chain, and one completion"), connection() as peer:
    message = null(6, 99) + bytes(3 * PAGE)
    rkey, addr = peer.memory(message)
    cuts = (0, 13, 14, 33, 40, 4000, len(message))
    reads = [(0, rkey, b - a, addr + a) for a, b in zip(cuts, cuts[1:])]
    with traced(on_server, "rdma_core/cq_poll") as events:
        peer.send(fixed(6, NOMSG) + lists(reads))
        equal(answer(peer, 6), accepted(6, 3), "answer: no such procedure")
    post, = of(events, "svcrdma_post_read_chunk")
    say(post)
    # On iWARP a region is registered for each Read.
    equal(number(post, "sqecount"), len(reads) * (2 if RDMA == "siw" else 1), "work requests")
    read_, = of(events, "svcrdma_wc_read")
    equal(number(read_, "totalbytes"), len(message), "bytes")
    queue = number(read_, "cq.id")
    polled = [number(t, "returned") for t in of(events, "cq_poll") if number(t, "cq.id") == queue]
    # All Reads, the reply, and maybe a look whether the client is there.
    count = sum(n for n in polled if n > 0)
    expect(2 <= count <= 3, f"{count} completions")


def orphaned(xid):
    """A call whose connection goes while the server asks its mountd who we are."""
    peer = Peer()
    on_server("kill -STOP $(pidof rpc.mountd); exportfs -f")
    try:
        peer.send(fixed(xid) + lists() + words(xid, 0, 2, 100003, 3, 1, 0, 0, 0, 0, 4, 0))
        time.sleep(0.3)
        peer.close()
    finally:
        on_server("sleep 0.3; kill -CONT $(pidof rpc.mountd)")
    time.sleep(2)


with check("a reply for a connection that has gone meanwhile is given up, and counted as such", 240):
    # A thread waits for mountd five seconds, then it puts the call aside, which is gone for good then:
    # on a slow machine it takes more than one of them.
    for xid in range(900, 906):
        with traced(on_server, "sunrpc/svc_send") as events:
            orphaned(xid)
        sent = [t for t in of(events, "svc_send") if number(t, "xid") == xid]
        if sent:
            break
    say(sent)
    equal([number(t, "status") for t in sent], [-107], "status of the reply")
    # Who may use RDMA has whatever privileges ports stand for.
    expect("SECURE" in sent[0].split("flags=")[1].split("|"), "the call counts as insecure")
    equal(of(events, "svcrdma_post_send"), [], "Sends")
    with connection() as peer:
        good(peer)

with check("an address of the server that goes takes its connections along"):
    other = "10.0.0.77"
    on_server(f"ip addr add {other}/24 dev $NETDEV")
    try:
        with connection() as stays:
            good(stays)
            before, peer = server_connections(), Peer(server=other)
            good(peer)
            on_server(f"ip addr del {other}/24 dev $NETDEV")
            is_closed(before)
            peer.close()
            good(stays)
    finally:
        run("on-server", f"ip addr del {other}/24 dev $NETDEV", ok=False)
        # What rxe sends from an address that has gone puts its queue pair for connecting in error, for
        # good (Documentation/upstream-findings.md): it gets a new one.
        on_server(f"rdma link delete {RDMA}0; rdma link add {RDMA}0 type {RDMA} netdev $NETDEV")
    with connection() as peer:
        good(peer)

on_server(f"rm -r {EXPORT}/calls")
done()
