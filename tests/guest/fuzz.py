# SPDX-License-Identifier: GPL-2.0
"""Recorded messages, changed by chance, to a live server: many connections, no pause, bad manners.

    fuzz.py [--count N] [--seconds S] [--seed S] [--replay FILE]

Messages count when the server's device has taken them. The same seed makes the same connections with
the same messages; only how they are interleaved, and where a connection ends because the server ends
it, is up to time. The connections of the last while are left in /out/fuzz-SEED.json (tests/run keeps
the log directory when something fails), which --replay sends again:

    scripts/vm --nodes 2 --client c --server rust --add FILE -- \
        python3 /run/payload/tests/guest/fuzz.py --replay /run/payload/add/FILE

Trouble is: a word of the server's kernel; no answer to a good client on a connection of its own; no
connection for it; a file changed that nobody may write; objects or memory left over (what is in use is
compared by account.py as well, after each start of the machines).
"""

import argparse
import collections
import ctypes
import json
from random import Random

import pyverbs.cm_enums as ce
import pyverbs.enums as e
from pyverbs.cmid import CMID, AddrInfo, ConnParam
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

from lib import *
from mutate import *
from peer import ROOT, connection, good, handle, null
from proxy import say_with

CORPUS = "/run/payload/recorded/calls.hex"
FOLDER, SECRET = f"{EXPORT}/fuzz", f"{EXPORT}/fuzz-secret"
# Connections at once, and the rings of one.
LINES, SENDS, RECEIVES, MESSAGE = 8, 64, 32, 4096
# What chunks name, always at the same addresses, so that a message means the same in every run.
AT, SIZE = 0x200000000000, 2 << 20
EVERY = 1000
# Seconds without an answer after which a connection that waits for some goes on.
PATIENCE = 0.2
KEPT = 60
ACCESS = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_READ | e.IBV_ACCESS_REMOTE_WRITE
ENDS = ("disconnect", "destroy", "error", "vanish", "revoke")


class Memory:
    """What one connection offers to the server."""

    def __init__(self, verbs, own):
        self.mr = MR(verbs.pd, SIZE, ACCESS, address=AT) if own else verbs.mr
        self.own = own
        key, other = self.mr.rkey, verbs.other.rkey
        self.good = [(key, AT, SIZE // 2), (key, AT, SIZE), (key, AT + SIZE // 2, SIZE // 2)]
        # Beyond the end, for reading only, of another time, and never.
        self.bad = [(key, AT + SIZE - 3), (key, AT - 4096), (other, AT), (key ^ 0x55, AT), (0, 0),
                    (0xffffffff, 0xffffffffffffffff), (key, 0xffffffffffff0000)]

    def close(self):
        if self.own and self.mr:
            self.mr.close()
        self.mr = None


class Verbs:
    """What all connections share."""

    def __init__(self):
        self.context = Context(name=f"{RDMA}0")
        self.pd = PD(self.context)
        self.cq = CQ(self.context, 8192)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        # PROT_READ | PROT_WRITE; MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_ANONYMOUS
        equal(libc.mmap(AT, SIZE, 3, 0x100021, -1, 0), AT, "address of the memory")
        self.mr = MR(self.pd, SIZE, ACCESS, address=AT)
        self.other = MR(self.pd, SIZE, e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_READ, address=AT)
        # Long calls to be read: one at each page, and parts of them at the odd places.
        text = (ctypes.c_char * SIZE).from_address(AT)
        long = null(70, 99)
        for page in range(0, SIZE // 2, 4096):
            text[page:page + 4096] = (long * 103)[:4096]
        self.ring = MR(self.pd, LINES * (SENDS + RECEIVES) * MESSAGE, e.IBV_ACCESS_LOCAL_WRITE)
        self.bytes = memoryview((ctypes.c_char * (LINES * (SENDS + RECEIVES) * MESSAGE))
                                .from_address(self.ring.buf)).cast("B")
        self.free = list(range(LINES))


class Session:
    """A connection and what is sent over it: parameters, then actions one by one."""

    def __init__(self, verbs, number, params, actions):
        self.verbs, self.number, self.params, self.actions = verbs, number, params, actions
        self.sent, self.head, self.tail, self.over, self.broken = [], 0, 0, False, False
        # Messages since the last pause for answers, and until when that lasts.
        self.unanswered, self.pause, self.counted = 0, 0, 0
        self.id = self.qp = self.memory = None
        self.part = verbs.free.pop()
        self.base = self.part * (SENDS + RECEIVES) * MESSAGE

    def open(self):
        verbs, params = self.verbs, self.params
        self.memory = Memory(verbs, params["own"])
        params["key"] = self.memory.mr.rkey
        info = AddrInfo(dst=SERVER, dst_service=str(PORT), port_space=ce.RDMA_PS_TCP)
        self.id = CMID(creator=info)
        cap = QPCap(max_send_wr=2 * SENDS, max_recv_wr=2 * RECEIVES)
        self.qp = QP(verbs.pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=verbs.cq, rcq=verbs.cq, cap=cap))
        self.modify(e.IBV_QPS_INIT)
        for n in range(params["receives"]):
            self.receive(n)
        conn = self.conn = ConnParam(resources=params["resources"], depth=params["depth"], retry=params["retry"],
                         rnr_retry=params["rnr"], qp_num=self.qp.qp_num)
        private = bytes.fromhex(params["private"])
        self.private = say_with(conn, private) if private else None
        self.id.connect(conn)
        if params["unfinished"]:
            self.over = True
            return
        if RDMA == "siw":
            # iWARP connects queue pairs itself, and has no third message that could be left out.
            return
        self.modify(e.IBV_QPS_RTR)
        self.modify(e.IBV_QPS_RTS)
        self.id.establish()

    def modify(self, state):
        attr, mask = self.id.init_qp_attr(state)
        if state == e.IBV_QPS_INIT:
            # Before it connects, the connection manager allows no reading.
            attr.qp_access_flags = ACCESS
        self.qp.modify(attr, mask)

    def wr_id(self, what, n):
        return self.number << 32 | what << 31 | n

    def receive(self, n):
        at = self.verbs.ring.buf + self.base + (SENDS + n) * MESSAGE
        self.qp.post_recv(RecvWR(wr_id=self.wr_id(1, n), num_sge=1, sg=[SGE(at, MESSAGE, self.verbs.ring.lkey)]))

    def step(self):
        """Post what there is room for. Returns how many messages have arrived since the last time."""
        self.post_some()
        arrived, self.counted = self.tail - self.counted, self.tail
        return arrived

    def post_some(self):
        begun = self.head
        if self.waits():
            return
        while not self.over and self.head - self.tail < SENDS and self.head - begun < 16:
            action = next(self.actions, None)
            if action is None:
                self.over = True
                break
            self.sent.append(action)
            try:
                self.post(*action)
            except PyverbsError:
                self.broken = True
                break

    def waits(self):
        """Answers are waited for now and then: not all messages get one."""
        if self.unanswered >= self.params["window"] or self.over and self.unanswered:
            now = time.monotonic()
            if not self.pause:
                self.pause = now + PATIENCE
            if now < self.pause:
                return True
            self.unanswered, self.pause = 0, 0
        return False

    def post(self, what, first, second=0, third=0):
        verbs, n = self.verbs, self.head % SENDS
        offset = self.base + n * MESSAGE
        data = first if what == "send" else bytes(min(third, MESSAGE))
        verbs.bytes[offset:offset + len(data)] = data
        sge = SGE(verbs.ring.buf + offset, len(data), verbs.ring.lkey)
        flags = e.IBV_SEND_SIGNALED if self.head % 8 == 7 else 0
        if what == "send":
            opcode = e.IBV_WR_SEND_WITH_INV if second else e.IBV_WR_SEND
            wr = SendWR(wr_id=self.wr_id(0, self.head), opcode=opcode, num_sge=1, sg=[sge],
                        send_flags=flags, imm_data=second)
            if second:
                # Where the library for siw looks for the key to invalidate.
                wr.set_wr_rdma(second, 0)
        else:
            opcode = e.IBV_WR_RDMA_WRITE if what == "write" else e.IBV_WR_RDMA_READ
            wr = SendWR(wr_id=self.wr_id(0, self.head), opcode=opcode, num_sge=1, sg=[sge], send_flags=flags)
            wr.set_wr_rdma(first, second)
        self.qp.post_send(wr)
        self.head += 1
        self.unanswered += 1

    def completed(self, wc):
        n = wc.wr_id & 0x7fffffff
        if wc.status:
            self.broken = True
        elif wc.wr_id >> 31 & 1:
            counts[self.kind(n)] += 1
            self.unanswered, self.pause = max(self.unanswered - 1, 0), 0
            if self.params["repost"]:
                self.receive(n)
        else:
            self.tail = max(self.tail, n + 1)

    def kind(self, n):
        """What a reply is."""
        at = self.base + (SENDS + n) * MESSAGE
        proc = self.verbs.bytes[at + 15]
        return {0: "replies", 1: "long replies", 4: "errors"}.get(proc, "other replies")

    def close(self, how):
        """The end of the connection: in good order, or in one of many bad ones."""
        try:
            if how == "disconnect" and not self.params["unfinished"]:
                # It waits for the event; on the way to a connection that takes a minute.
                self.id.disconnect()
            elif how == "error":
                self.qp.modify(QPAttr(qp_state=e.IBV_QPS_ERR), e.IBV_QP_STATE)
            elif how == "revoke" and self.memory.own:
                self.memory.close()
        except PyverbsError:
            pass
        things = (self.id, self.qp, self.memory) if how == "vanish" else (self.qp, self.id, self.memory)
        for thing in things:
            if thing:
                thing.close()
        self.verbs.free.append(self.part)


# --- what is sent -------------------------------------------------------------------------------


def session_of(verbs, seed, number, templates, long):
    """The connection of this number: its parameters, and an iterator of actions."""
    random = Random(f"{seed}/{number}")
    private = bytes.fromhex("f6ab0e1801000303")
    if random.random() < 0.2:
        private = change_bytes(random, private, [private * 3])[:56]
    polite = random.random() < 0.8
    params = {
        "receives": RECEIVES if polite else random.choice((0, 1, 5, RECEIVES)), "repost": polite,
        "private": private.hex(), "own": random.random() < 0.1, "unfinished": random.random() < 0.03,
        "resources": random.choice((4, 4, 4, 4, 1, 16)), "depth": random.choice((4, 4, 4, 4, 1, 16)),
        "window": random.choice((8, 30, 30, 60, 500)),
        "retry": random.choice((7, 3, 0)), "rnr": 7 if polite else random.choice((0, 1, 7)),
        "end": random.choice(ENDS), "drain": random.random() < 0.6,
    }
    length = random.choice((1, 5, 50, 200, 400, 400))
    session = Session(verbs, number, params, None)

    def actions():
        maker = Maker(random, templates, long, session.memory)
        for n in range(length):
            chance = random.random()
            if chance < 0.002:
                key = random.choice((0, random.getrandbits(32), params["key"]))
                yield random.choice(("write", "read")), key, random.choice((0, AT, random.getrandbits(64))), \
                    random.choice((0, 1, 64, 4096))
            elif chance < 0.004:
                yield "send", maker.message(), random.choice((1, random.getrandbits(32), params["key"]))
            else:
                yield "send", maker.message(), 0
    session.actions = actions()
    return session


def replayed(verbs, number, saved, handles):
    """The connection that was saved, with what has another value in this run."""
    session = Session(verbs, number, dict(saved["params"]), None)

    def actions():
        changed = {words(saved["params"]["key"]): session.memory.mr.rkey}
        changed = {old: words(new) for old, new in changed.items()}
        for what, first, second, third in saved["actions"]:
            if what == "send":
                data = bytes.fromhex(first)
                for old, new in handles + list(changed.items()):
                    data = data.replace(old, new)
                first = data
            yield what, first, second, third
    session.actions = actions()
    return session


def saved(verbs, path, handles, last=None):
    """The connections in a file, or the last of them: how many messages, and an iterator of sessions."""
    with open(path) as f:
        content = json.load(f)
    pairs = list(zip(map(bytes.fromhex, content["handles"]), handles))
    chosen = content["sessions"][-last:] if last else content["sessions"]
    # Completions of other connections may still come: no number is used twice.
    return (sum(len(s["actions"]) for s in chosen),
            (replayed(verbs, n, s, pairs) for n, s in enumerate(chosen, 1 << 24)))


def lists(parts):
    """A call that lists a folder with a Reply chunk for the names: READDIRPLUS of NFSv3, READDIR of v4 from the
    beginning on."""
    return parts.reply and (parts.rpc[19] == 3 and parts.rpc[23] == 17 or words(26, 0, 0) in parts.rpc)


def load(handles):
    """The recorded messages, with handles of files of this server."""
    folder, file = handles
    templates = []
    for data in recorded(CORPUS):
        parts = Parts.of(data)
        rpc = parts.rpc.replace(words(8) + ROOT, words(len(folder)) + folder)
        # Other handles of the recorded export begin in the same way.
        start = words(len(file)) + file[:8]
        at = rpc.find(start)
        while at >= 0:
            # What has a Reply chunk mostly lists a folder.
            which = folder if parts.reply or len(templates) % 3 == 0 else file
            rpc = rpc[:at + 4] + which + rpc[at + 4 + len(file):]
            at = rpc.find(start, at + 4)
        parts.rpc = rpc
        templates.append(parts)
    return templates


# --- the run ------------------------------------------------------------------------------------

counts = collections.Counter()


class Run:
    def __init__(self, verbs, sessions, name):
        self.verbs, self.sessions, self.name = verbs, sessions, name
        self.active, self.old = {}, collections.deque(maxlen=KEPT + LINES)
        self.progress = time.monotonic()

    def go(self, count):
        """Send messages until so many have arrived, or there are no more of them."""
        sent = 0
        while sent < count:
            while len(self.active) < LINES:
                session = next(self.sessions, None)
                if session is None:
                    break
                self.begin(session)
            if not self.active:
                return sent
            for session in list(self.active.values()):
                if not session.broken:
                    sent += session.step()
                self.maybe_end(session)
            if self.poll():
                self.progress = time.monotonic()
            else:
                expect(time.monotonic() - self.progress < 90, "no connection gets on for 90 s")
                time.sleep(0.001)
        return sent

    def begin(self, session):
        counts["connections"] += 1
        try:
            session.open()
        except PyverbsError:
            # The server may refuse: what was asked for may make no sense.
            counts["refused"] += 1
            session.broken = True
            expect(counts["refused"] < 100 + counts["connections"] / 2, f"hardly any connection is made: {counts}")
        session.opened = time.monotonic()
        self.active[session.number] = session

    def maybe_end(self, session):
        done = session.over and (not session.params["drain"]
                                 or session.tail >= session.head - session.head % 8 and not session.waits())
        late = time.monotonic() - session.opened > 30
        if not (session.broken or done or late):
            return
        counts["ended by the server" if session.broken else "too slow" if late and not done else
               session.params["end"]] += 1
        del self.active[session.number]
        self.old.append(session)
        session.close(session.params["end"])

    def poll(self):
        count, completions = self.verbs.cq.poll(64)
        for wc in completions or ():
            session = self.active.get(wc.wr_id >> 32)
            if session:
                session.completed(wc)
        return count

    def end(self):
        for session in list(self.active.values()):
            session.broken = True
            self.maybe_end(session)

    def save(self, handles, why):
        """Leave in a file what the last connections sent. Returns its name."""
        path = f"/out/fuzz-{self.name}.json"
        sessions = [{"number": s.number, "params": s.params,
                     "actions": [[a[0], a[1].hex() if a[0] == "send" else a[1], *a[2:], *[0] * (4 - len(a))]
                                 for a in s.sent]}
                    for s in [*self.old, *self.active.values()]]
        write(path, json.dumps({"why": why, "handles": [h.hex() for h in handles], "sessions": sessions}))
        say(f"what was sent is in {path} of the log directory's out/, {len(sessions)} connections")
        return path


def words_of_kernel():
    """What would be trouble in the server's log, as scripts/vm sees it, and whether it is tainted."""
    tainted = int(on_server("cat /proc/sys/kernel/tainted"))
    expect(not tainted & TAINTS, f"the server's kernel is tainted: {tainted:#x}")


def look_after():
    words_of_kernel()
    with connection() as peer:
        good(peer)
    equal(on_server(f"sha256sum <{SECRET}/file").split()[0], secret, "what nobody may write")


def resources():
    return on_server("rdma resource show").split("\n")[0]


parser = argparse.ArgumentParser()
parser.add_argument("--count", type=int, default=200_000 if LONG else 2_000)
parser.add_argument("--seconds", type=float, default=1e9, help="end then, however many it were")
parser.add_argument("--seed", default=f"{int.from_bytes(os.urandom(4), 'big'):08x}")
parser.add_argument("--replay")
args = parser.parse_args()

with check("a server with files"):
    names = set(on_server(f"ls {EXPORT}").split())
    on_server(f"mkdir -m 777 {FOLDER}; mkdir -m 700 {SECRET}; cd {FOLDER}; seq 1 150000 >file; chmod 666 file;"
              f"head -c 100000 /dev/urandom >{SECRET}/file; touch $(seq -f name-%030g 100)")
    secret = on_server(f"sha256sum <{SECRET}/file").split()[0]
    baseline = resources()
    say(baseline)
    verbs = Verbs()
    with connection() as peer:
        folder = handle(peer, ROOT, "fuzz")
        handles = [folder, handle(peer, folder, "file")]
    templates = load(handles)
    long = list(filter(lists, templates))
    say(f"{len(templates)} recorded messages, {len(long)} with a Reply chunk that will be used")
    if args.replay:
        args.count, sessions = saved(verbs, args.replay, handles)
        name = "replay"
    else:
        say(f"seed {args.seed}")
        sessions = (session_of(verbs, args.seed, n, templates, long) for n in range(1 << 31))
        name = args.seed
    run_ = Run(verbs, sessions, name)
    results.keep = lambda why: run_.save(handles, why)

with check("messages from a recording, changed by chance", limit=7000 if LONG else 600):
    total, begun = 0, time.monotonic()
    while total < args.count and time.monotonic() - begun < args.seconds:
        sent = run_.go(min(EVERY, args.count - total))
        total += sent
        look_after()
        seconds = time.monotonic() - begun
        say(f"seed {args.seed}: {total} messages, {total / seconds:.0f} per second, {counts['connections']} "
            "connections")
        if not sent:
            break
    run_.end()
    look_after()
    say(", ".join(f"{value} {key}" for key, value in sorted(counts.items())))
    if not args.replay:
        expect(counts["replies"] > total / 10 and counts["errors"] > total / 20, "there are too few answers")
        # Three or four in 1000: of 2000 messages there may be two by chance.
        expect(counts["long replies"] > (total / 1000 if LONG else 0), "hardly any reply filled a Reply chunk")
# If that failed: when what was sent is saved.
run_.end()

if not args.replay:
    with check("the last connections once more, as --replay has them"):
        # It stays, for what is seen only when the test is over: words of a kernel, memory that is lost.
        path = run_.save(handles, "none: the server was as before")
        count, sessions = saved(verbs, path, handles, 20)
        before = counts["replies"] + counts["errors"]
        again = Run(verbs, sessions, "again")
        total = again.go(count)
        again.end()
        look_after()
        answers = counts["replies"] + counts["errors"] - before
        say(f"{total} of {count} messages arrived, {answers} were answered")
        expect(answers > 50, "hardly any")

with check("the server is as before: objects, an ordinary mount"):
    new = set(on_server(f"ls {EXPORT}").split()) - names
    on_server(f"cd {EXPORT} && chmod 1777 . && rm -rf -- {' '.join(map(repr, new))}")
    wait_for(lambda: resources() == baseline, 90, f"{baseline}, instead {resources()}")
    with mounted("4.2") as at:
        write_file(f"{at}/fuzz", random_bytes(100000))
        equal(sha(read_file(f"{at}/fuzz", direct=True)), sha(random_bytes(100000)), "content")
        os.unlink(f"{at}/fuzz")
    words_of_kernel()
done()
