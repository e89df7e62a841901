# SPDX-License-Identifier: GPL-2.0
"""An NFS/RDMA server made of verbs, whose replies a test can spoil.

It passes calls on to a real nfsd by TCP, and answers with what that says, except where a test wants
something else: see Proxy.spoil(). One connection at a time.
"""

import ctypes
import errno
import os
import re
import select
import socket
import struct
import threading
import time
import traceback

import pyverbs.cm_enums as ce
import pyverbs.enums as e
from pyverbs.cmid import CMID, AddrInfo, CMEvent, CMEventChannel, ConnParam
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError, PyverbsRDMAError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

MSG, NOMSG, MSGP, RDMA_DONE, ERROR = range(5)
NFS = 100003
NULL, GETATTR, READ, WRITE, FSSTAT = 0, 1, 6, 7, 18
READDIR, READDIRPLUS = 16, 17
SEGMENT = struct.Struct(">IIQ")
MESSAGE = 16384
RECEIVES, SENDS, DATA = 160, 8, 4 << 20


def words(*values):
    return struct.pack(f">{len(values)}I", *values)


def private_data(send=4, recv=4, version=1, magic=0xf6ab0e18):
    """RFC 8797, with sizes in KiB."""
    return struct.pack(">IBBBB", magic, version, 1, send - 1, recv - 1)


def say_with(param, data):
    """Put private data into parameters of a connection, as long as what is returned exists.

    (set_private_data() of pyverbs 56 leaves them as they are.) They are a structure in the object: a pointer
    and a length, both 0, six bytes, and the number of a queue pair.
    """
    image = ctypes.string_at(id(param), param.__sizeof__())
    places = list(re.finditer(rb"(?s)\x00{9}.{6}\x00" + re.escape(struct.pack("=I", param.qpn)), image))
    if len(places) != 1:
        raise ValueError(f"not the parameters that are known: {image.hex()}")
    at, kept = id(param) + places[0].start(), ctypes.create_string_buffer(data, len(data))
    ctypes.c_uint64.from_address(at).value = ctypes.addressof(kept)
    ctypes.c_uint8.from_address(at + 8).value = len(data)
    return kept


def cm_files():
    """File descriptors of the connection manager: pyverbs does not tell that of a channel."""
    return {fd for fd in map(int, os.listdir("/proc/self/fd"))
            if os.path.realpath(f"/proc/self/fd/{fd}").endswith("/rdma_cm")}


class Broken(Exception):
    """The connection has ended, or a work request failed: args[0] is its status."""


class Call:
    """A call: its header, its RPC message without chunks, and later what nfsd answers."""

    def __init__(self, data):
        self.data, self.answer = data, None
        self.xid, self.version, self.credits, self.proc = struct.unpack_from(">4I", data)
        at = 16
        self.reads, self.writes, self.reply = [], [], None
        while self.word(at):
            self.reads.append((self.word(at + 4), *SEGMENT.unpack_from(data, at + 8)))
            at += 24
        at += 4
        while self.word(at):
            chunk, at = self.chunk(at + 4)
            self.writes.append(chunk)
        at += 4
        if self.word(at):
            self.reply, at = self.chunk(at + 4)
        else:
            at += 4
        self.message = data[at:]

    def word(self, at):
        return struct.unpack_from(">I", self.data, at)[0]

    def chunk(self, at):
        count = self.word(at)
        return ([SEGMENT.unpack_from(self.data, at + 4 + 16 * i) for i in range(count)],
                at + 4 + 16 * count)

    @property
    def segments(self):
        """(key, length, offset) of all that the call grants, in order."""
        segments = [s[1:] for s in self.reads] + [s for c in self.writes for s in c]
        return segments + (self.reply or [])

    @property
    def keys(self):
        """The remote keys of the call, in order."""
        return [s[0] for s in self.segments]

    @property
    def procedure(self):
        """The NFS procedure, None for another program."""
        program, _, procedure = struct.unpack_from(">3I", self.message, 12)
        return procedure if program == NFS else None


class Reply:
    """What goes back; a test can change all of it before it is sent."""

    def __init__(self, call):
        self.xid, self.version, self.credits, self.proc = call.xid, 1, 64, MSG
        self.reads, self.writes, self.reply, self.body = [], [], None, b""
        self.invalidate = None

    def encode(self):
        out = words(self.xid, self.version, self.credits, self.proc)
        for position, *segment in self.reads:
            out += words(1, position) + SEGMENT.pack(*segment)
        out += words(0)
        for chunk in self.writes:
            out += words(1, len(chunk)) + b"".join(SEGMENT.pack(*s) for s in chunk)
        out += words(0)
        if self.reply is None:
            out += words(0)
        else:
            out += words(1, len(self.reply)) + b"".join(SEGMENT.pack(*s) for s in self.reply)
        return out + self.body


def fill(chunk, size):
    """The segments of a chunk when so many bytes were written into it."""
    out = []
    for key, length, at in chunk:
        used = min(length, size)
        out.append((key, used, at))
        size -= used
    return out


def data_of_read(call):
    """Where in the answer the data of READ begins with its length; 0: there is none. It is the last item."""
    body = call.answer
    if not call.writes or body[24:28] != words(0):
        return 0
    if call.procedure == READ:
        return 24 + 4 + 4 + (84 if body[28:32] == words(1) else 0) + 8
    # NFSv4.1 and later: SEQUENCE, PUTFH, READ.
    read = 24 + 12 + 44 + 8
    return read + 12 if body[36:40] == words(53) and body[read:read + 8] == words(25, 0) else 0


class Connection:
    def __init__(self, proxy, cmid, private):
        self.proxy, self.cmid, self.private = proxy, cmid, private
        self.calls, self.largest, self.broken = {}, 0, None
        pd, context = proxy.pd, proxy.context
        self.scq, self.rcq = CQ(context, 256), CQ(context, 256)
        cap = QPCap(max_send_wr=128, max_recv_wr=RECEIVES)
        self.qp = QP(pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.scq, rcq=self.rcq, cap=cap))
        access = e.IBV_ACCESS_LOCAL_WRITE
        self.mr = MR(pd, RECEIVES * MESSAGE + MESSAGE + DATA, access)
        self.modify(e.IBV_QPS_INIT)
        for index in range(RECEIVES):
            self.post(index)
        self.modify(e.IBV_QPS_RTR)
        self.modify(e.IBV_QPS_RTS)
        self.tcp = socket.create_connection((proxy.nfsd, 2049), 10)
        self.stream, self.backward = b"", set()

    def modify(self, state):
        self.qp.modify(*self.cmid.init_qp_attr(state))

    def post(self, index):
        sge = SGE(self.mr.buf + index * MESSAGE, self.proxy.receive, self.mr.lkey)
        self.qp.post_recv(RecvWR(wr_id=index, num_sge=1, sg=[sge]))

    def memory(self, offset, size):
        return (ctypes.c_char * size).from_address(self.mr.buf + offset)

    # --- one step of the loop

    def work(self):
        """Handle what has arrived. Returns whether anything had."""
        count, completions = self.rcq.poll(16)
        for wc in completions or ():
            if wc.status:
                self.broken = wc.status
                return True
            data = self.memory(wc.wr_id * MESSAGE, wc.byte_len).raw
            self.post(wc.wr_id)
            self.received(data)
        ready = select.select([self.tcp], [], [], 0)[0]
        if ready:
            self.stream += self.tcp.recv(1 << 20)
            self.records()
        return bool(count or ready)

    def received(self, data):
        self.largest = max(self.largest, len(data))
        call = Call(data)
        if call.message[4:8] == words(1):
            # The answer to a callback, maybe to one that nfsd knows nothing of.
            self.proxy.answers.append(call.xid)
            self.proxy.grants.add(call.credits)
            if call.xid in self.backward:
                self.forward(call.message)
            return
        for position, key, length, at in call.reads:
            part = self.read(key, at, length)
            call.message = (call.message[:position] + part + bytes(-length % 4)
                            + call.message[position:])
        self.calls[call.xid] = call
        self.proxy.seen.append(call)
        if not self.proxy.holding:
            self.forward(call.message)

    def forward(self, message):
        self.tcp.sendall(words(0x80000000 | len(message)) + message)

    def records(self):
        while len(self.stream) >= 4:
            size = struct.unpack_from(">I", self.stream)[0] & 0x7fffffff
            if len(self.stream) < 4 + size:
                return
            record, self.stream = self.stream[4:4 + size], self.stream[4 + size:]
            xid, direction = struct.unpack_from(">2I", record)
            if direction == 0:
                self.backward.add(xid)
                self.send(words(xid, 1, 2, MSG, 0, 0, 0) + record)
                continue
            call = self.calls.pop(xid)
            call.answer = record
            self.proxy.answer(self, call)

    # --- what replies are made of

    def reply(self, call):
        """The honest reply: RDMA Writes are done, the message is not sent."""
        reply, body = Reply(call), call.answer
        reply.credits = self.proxy.credits
        reply.writes = [fill(chunk, 0) for chunk in call.writes]
        at = data_of_read(call)
        if at:
            size, = struct.unpack_from(">I", body, at)
            self.scatter(call.writes[0], body[at + 4:at + 4 + size])
            reply.writes[0] = fill(call.writes[0], size)
            body = body[:at + 4]
        if call.reply is None:
            reply.body = body
        else:
            reply.proc = NOMSG
            self.scatter(call.reply, body)
            reply.reply = fill(call.reply, len(body))
        return reply

    def scatter(self, chunk, data):
        for key, length, at in chunk:
            part, data = data[:length], data[length:]
            if part:
                self.write(key, at, part)

    def send(self, message, invalidate=None):
        offset = RECEIVES * MESSAGE
        self.memory(offset, len(message)).raw = bytes(message)
        sge = SGE(self.mr.buf + offset, len(message), self.mr.lkey)
        opcode = e.IBV_WR_SEND if invalidate is None else e.IBV_WR_SEND_WITH_INV
        # The key to invalidate and immediate data are members of one union.
        wr = SendWR(opcode=opcode, num_sge=1, sg=[sge], imm_data=invalidate or 0)
        if invalidate is not None:
            # Where the library for siw looks for it.
            wr.set_wr_rdma(invalidate, 0)
        self.do(wr)

    def write(self, key, at, data, refused=False):
        """RDMA Write. One that should be refused raises Broken if it is."""
        offset = (RECEIVES + 1) * MESSAGE
        self.memory(offset, len(data)).raw = data
        self.rdma(e.IBV_WR_RDMA_WRITE, key, at, len(data))
        if refused and self.proxy.iwarp:
            # iWARP answers no RDMA Write. Who refuses one ends the connection.
            self.wait_broken(5)

    def read(self, key, at, size):
        """RDMA Read."""
        self.rdma(e.IBV_WR_RDMA_READ, key, at, size)
        return self.memory((RECEIVES + 1) * MESSAGE, size).raw

    def rdma(self, opcode, key, at, size):
        sge = SGE(self.mr.buf + (RECEIVES + 1) * MESSAGE, size, self.mr.lkey)
        wr = SendWR(opcode=opcode, num_sge=1, sg=[sge])
        wr.set_wr_rdma(key, at)
        self.do(wr)

    def do(self, wr):
        """Post a work request and wait for its completion."""
        try:
            self.qp.post_send(wr)
        except PyverbsError as error:
            self.broken = -1
            raise Broken(-1) from error
        end = time.monotonic() + 20
        while True:
            _, completions = self.scq.poll(1)
            if completions:
                break
            if time.monotonic() > end:
                raise Broken(-2)
            time.sleep(0)
        if completions[0].status:
            self.broken = completions[0].status
            raise Broken(self.broken)

    def wait_broken(self, seconds):
        """Handle what arrives, for so long or until the connection ends, which raises Broken."""
        end = time.monotonic() + seconds
        while not self.broken and time.monotonic() < end:
            if not self.work():
                time.sleep(0.001)
        if self.broken:
            raise Broken(self.broken)

    def disconnect(self):
        try:
            self.cmid.disconnect()
        except PyverbsError:
            pass
        self.broken = self.broken or -3

    def close(self):
        self.disconnect()
        self.tcp.close()
        for thing in (self.qp, self.scq, self.rcq, self.mr, self.cmid):
            thing.close()


class Proxy(threading.Thread):
    """The server. Its methods are for the test's thread, unless they take a connection."""

    def __init__(self, address, port, nfsd, device):
        super().__init__(daemon=True)
        self.nfsd, self.receive, self.private = nfsd, 4096, b""
        self.spoilers, self.requests, self.seen, self.errors = [], [], [], []
        self.holding, self.accepted, self.connection, self.ending = False, 0, None, False
        self.established = 0
        self.orders, self.answers, self.grants, self.credits = [], [], set(), 64
        self.context = Context(name=device)
        with open(f"/sys/class/infiniband/{device}/node_type") as f:
            self.iwarp = "RNIC" in f.read()
        self.pd = PD(self.context)
        before = cm_files()
        self.channel = CMEventChannel()
        self.fd, = cm_files() - before
        self.listener = CMID(creator=self.channel)
        self.listener.bind_addr(AddrInfo(src=address, src_service=str(port),
                                         port_space=ce.RDMA_PS_TCP, flags=ce.RAI_PASSIVE))
        self.listener.listen(8)
        self.start()

    def run(self):
        while not self.ending:
            try:
                if not self.step():
                    time.sleep(0.001)
            except Broken:
                pass
            except Exception:
                self.errors.append(traceback.format_exc())
                print("".join(f"# {line}\n" for line in self.errors[-1].splitlines()), end="")
                time.sleep(0.1)
        if self.connection:
            self.connection.close()
        self.listener.close()
        self.channel.close()

    def step(self):
        busy = False
        if select.select([self.fd], [], [], 0)[0]:
            self.event(CMEvent(self.channel))
            busy = True
        while self.orders:
            self.orders.pop(0)()
        connection = self.connection
        if connection and not connection.broken:
            busy |= connection.work()
        return busy

    def event(self, event):
        kind = event.event_type
        if kind == ce.RDMA_CM_EVENT_CONNECT_REQUEST:
            if self.connection:
                self.connection.close()
                self.connection = None
            child = CMID(creator=event, listen_id=self.listener)
            private = event.private_data
            event.ack_cm_event()
            self.requested(child, private)
            return
        event.ack_cm_event()
        self.established += kind == ce.RDMA_CM_EVENT_ESTABLISHED
        if kind == ce.RDMA_CM_EVENT_DISCONNECTED and self.connection:
            self.connection.disconnect()

    def requested(self, child, private):
        action = self.requests.pop(0) if self.requests else None
        if not (action and action(child, private)):
            self.accept(Connection(self, child, private))

    def accept(self, connection):
        param = ConnParam(resources=4, depth=4, rnr_retry=0, qp_num=connection.qp.qp_num)
        kept = say_with(param, self.private) if self.private else None
        try:
            connection.cmid.accept(param)
        except PyverbsRDMAError as error:
            connection.close()
            if error.error_code != errno.ECONNRESET:
                raise
            # iWARP: the client did not want to wait any longer.
            raise Broken("the client has gone") from None
        del kept
        self.accepted += 1
        self.connection = connection

    def answer(self, connection, call):
        """Answer a call: as the first spoiler for its procedure wants, or honestly."""
        for index, (procedure, spoiler) in enumerate(self.spoilers):
            if procedure in (None, call.procedure):
                del self.spoilers[index]
                spoiler(connection, call)
                return
        self.honest(connection, call)

    def honest(self, connection, call):
        reply = connection.reply(call)
        connection.send(reply.encode(), reply.invalidate)

    # --- for tests

    def spoil(self, procedure, spoiler):
        """`spoiler(connection, call)` answers the next call of this procedure."""
        self.spoilers.append((procedure, spoiler))

    def order(self, action, timeout=30):
        """Have the server's thread call `action`; return what that returns, or a Broken."""
        done, result = threading.Event(), []

        def run():
            try:
                result.append(action())
            except Broken as error:
                result.append(error)
            finally:
                done.set()
        self.orders.append(run)
        if not done.wait(timeout):
            raise TimeoutError("the server's thread does not answer")
        return result[0]

    def release(self):
        """Pass on the calls that were held back."""
        self.order(lambda: [self.connection.forward(call.message)
                            for call in self.connection.calls.values()])

    def end(self):
        self.ending = True
        self.join(30)
