# SPDX-License-Identifier: GPL-2.0
"""A peer without a kernel client: connections, messages, and what an answer should be."""

import signal
import struct

import pyverbs.cm_enums as ce
import pyverbs.enums as e
from pyverbs.cmid import CMID, AddrInfo, ConnParam
from pyverbs.pyverbs_error import PyverbsError
from pyverbs.qp import QPCap, QPInitAttr

from lib import *

# The handle of the export's root: its fsid is 1.
ROOT = bytes.fromhex("0100010001000000")
MSG, NOMSG, MSGP, RDMA_DONE, ERROR = range(5)
ERR_VERS, ERR_CHUNK = 1, 2
PAGE = 4096
SEGMENT = struct.Struct(">IIQ")


class Quiet(Exception):
    """Nothing came."""


class Gone(Exception):
    """The connection has ended."""


def words(*values):
    return struct.pack(f">{len(values)}I", *values)


class Peer:
    """A connection, used as the protocol does: Send, Receive, memory that the server may reach."""

    def __init__(self, receives=8, resources=4, server=SERVER, **conn):
        info = AddrInfo(dst=server, dst_service=str(PORT), port_space=ce.RDMA_PS_TCP)
        attr = QPInitAttr(cap=QPCap(max_send_wr=64, max_recv_wr=64))
        attr.qp_type = e.IBV_QPT_RC
        self.id = CMID(creator=info, qp_init_attr=attr)
        self.receives, self.keep, self.at = [], [], 0
        for _ in range(receives):
            self.post()
        self.id.connect(ConnParam(resources=resources, depth=4, **conn))

    def post(self):
        region = self.id.reg_msgs(PAGE)
        self.id.post_recv(region)
        self.receives.append(region)

    def send(self, message):
        region = self.id.reg_msgs(max(len(message), 1))
        region.write(message, len(message))
        self.keep.append(region)
        try:
            self.id.post_send(region, e.IBV_SEND_SIGNALED)
            wc = self.wait(self.id.get_send_comp, 10 * SLOWNESS)
        except (PyverbsError, Quiet) as error:
            raise Gone(error) from None
        if wc.status:
            raise Gone(f"send status {wc.status}")

    def wait(self, get, seconds):
        def alarm(*_):
            raise Quiet
        signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.2)
        try:
            wc = get()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if wc is None:
            raise Quiet
        return wc

    def recv(self, seconds=5 * SLOWNESS, again=True):
        """The next message; then there is room for another one, but not if not `again`."""
        try:
            wc = self.wait(self.id.get_recv_comp, seconds)
        except PyverbsError as error:
            raise Quiet(error) from None
        if wc.status:
            raise Gone(f"receive status {wc.status}")
        region = self.receives[self.at]
        self.at += 1
        data = region.read(wc.byte_len, 0)
        if again:
            self.post()
        return data

    def memory(self, data):
        """Memory to read: (rkey, address)."""
        region = self.id.reg_read(max(len(data), 1))
        region.write(data, len(data))
        self.keep.append(region)
        return region.rkey, region.buf

    def space(self, size):
        """Memory to write: the region."""
        region = self.id.reg_write(size)
        region.write(b"\xee" * size, size)
        self.keep.append(region)
        return region

    def close(self):
        for region in self.receives + self.keep:
            region.close()
        self.id.close()


def fixed(xid, proc=MSG, version=1, credits=32):
    return words(xid, version, credits, proc)


def lists(reads=(), writes=(), reply=None):
    """Read list of (position, rkey, length, address); chunks of (rkey, length, address)."""
    out = b"".join(words(1, position) + SEGMENT.pack(*segment) for position, *segment in reads)
    out += words(0)
    for chunk in writes:
        out += words(1, len(chunk)) + b"".join(SEGMENT.pack(*segment) for segment in chunk)
    out += words(0)
    if reply is None:
        return out + words(0)
    return out + words(1, len(reply)) + b"".join(SEGMENT.pack(*segment) for segment in reply)


def null(xid, proc=0):
    """The NULL call of NFS 3."""
    return words(xid, 0, 2, 100003, 3, proc, 0, 0, 0, 0)


def null_named(xid, name):
    """The same with a credential that has a machine name: (call, offset of the name)."""
    pad = -len(name) % 4
    body = words(7, len(name)) + name + bytes(pad) + words(0, 0, 0)
    return words(xid, 0, 2, 100003, 3, 0, 1, len(body)) + body + words(0, 0), 40


def nfs3(xid, procedure, *opaque):
    """A call of NFS 3 by root: handles and names, then bytes as they are."""
    call = words(xid, 0, 2, 100003, 3, procedure, 1, 24, 0, 0, 0, 0, 1, 0, 0, 0)
    for part in opaque:
        call += words(len(part)) + part + bytes(-len(part) % 4)
    return call


def handle(peer, folder, name):
    """The handle of a name, by LOOKUP."""
    peer.send(fixed(0x4a4) + lists() + nfs3(0x4a4, 3, folder, name.encode()))
    data = answer(peer, 0x4a4)
    equal(data[:28], accepted(0x4a4) + words(0), "answer to LOOKUP")
    return data[32:32 + int.from_bytes(data[28:32], "big")]


def known(peer):
    """Names a file: only then the server takes up more calls while it has memory for some of this peer."""
    peer.post()
    peer.send(fixed(0x4a5) + lists() + nfs3(0x4a5, 1, ROOT))
    expect(accepted(0x4a5) + words(0) in peer.recv(again=False), "no answer to GETATTR")


def accepted(xid, status=0):
    return words(xid, 1, 0, 0, 0, status)


def good(peer, xid=0x600d):
    peer.send(fixed(xid) + lists() + null(xid))
    equal(answer(peer, xid), accepted(xid), "answer to a plain call")


def answer(peer, xid, reads=b"", header=None):
    """The RPC message of a reply whose header has empty lists, or the given ones."""
    data = peer.recv()
    header = lists() if header is None else header
    got_xid, version, credits, proc = struct.unpack_from(">4I", data)
    equal((got_xid, version, proc), (xid, 1, MSG), "xid, version and procedure of the reply")
    equal(credits, CREDITS, "credits granted")
    equal(data[16:16 + len(header)], header, "chunk lists of the reply")
    return data[16 + len(header):]


def error(peer, xid, code=ERR_CHUNK):
    data = peer.recv()
    got_xid, _, credits, proc, got = struct.unpack_from(">5I", data)
    equal((got_xid, proc, got), (xid, ERROR, code), "xid, procedure and code of the error")
    equal(credits, CREDITS, "credits granted with the error")
    return data


def ends(peer):
    """The connection ends within a few seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            peer.recv(2)
        except Quiet:
            continue
        except Gone:
            return
    raise Failed("the connection is still there")


def server_connections():
    """Queue pairs of the server, without that of the connection manager, and ours if we are on its machine."""
    lines = on_server("rdma resource show qp").splitlines()
    return queue_pairs("\n".join(line for line in lines if " type RC " in line and " pid " not in line))


def is_closed(before=frozenset()):
    """The server has no more connections than these: one that waits would not notice that by itself."""
    wait_for(lambda: server_connections() <= before, 30, "the server has closed the connection")


def silent(peer, seconds=1):
    try:
        data = peer.recv(seconds)
    except Quiet:
        return
    raise Failed(f"unexpected answer {data.hex()}")


# Operations of NFSv4.
LOOKUP, PUTROOTFH = 15, 24


def opaque(data):
    return words(len(data)) + data + bytes(-len(data) % 4)


def compound(xid, minor, *ops):
    """A COMPOUND of NFSv4 as root."""
    credential = words(0, 0, 0, 0, 0)
    return (words(xid, 0, 2, 100003, 4, 1, 1, len(credential)) + credential + words(0, 0)
            + words(0, minor, len(ops)) + b"".join(ops))


def walk(*names):
    """The operations of NFSv4 that lead to a file."""
    return [words(PUTROOTFH), *(words(LOOKUP) + opaque(name.encode()) for name in names)]


class Session:
    """A session of NFSv4.2, whose calls come one after the other."""

    def __init__(self, peer):
        self.peer, self.number = peer, 0
        # EXCHANGE_ID, CREATE_SESSION: nothing is protected, and there is no name of a program.
        self.client, sequence = struct.unpack_from(
            ">8sI", self.result(words(42) + bytes(8) + opaque(b"by hand") + words(0, 0, 0)))
        channel = words(0, 1 << 16, 1 << 16, 4096, 16, 1, 0)
        self.id = self.result(words(43) + self.client + words(sequence, 0) + channel * 2 + words(1 << 30, 1, 0))[:16]

    def result(self, op):
        """What an operation that is alone has for a result."""
        self.peer.send(fixed(0x41) + lists() + compound(0x41, 2, op))
        reply = answer(self.peer, 0x41)
        equal(reply[:44], accepted(0x41) + words(0, 0, 1) + op[:4] + words(0), "answer")
        return reply[44:]

    def call(self, xid, *ops):
        """A call in this session."""
        self.number += 1
        return compound(xid, 2, words(53) + self.id + words(self.number, 0, 0, 0), *ops)

    def end(self):
        self.result(words(44) + self.id)
        self.result(words(57) + self.client)


class connection:
    def __enter__(self):
        self.peer = Peer()
        return self.peer

    def __exit__(self, *_):
        self.peer.close()


CREDITS = int(on_server("cat /proc/sys/sunrpc/svc_rdma/max_requests"))
