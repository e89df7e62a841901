# SPDX-License-Identifier: GPL-2.0
"""A server that lies by chance: replies are changed, repeated, lost, sent late, cut off; keys are used
when they must not be. hostile.py has the lies one by one, and what the client makes of each; this has
them all together, while a mount is busy.

    liar.py [--count N] [--seed S] [--replay FILE]

What the reply to a call is depends on the seed, on the call's procedure and number of keys, and on how
many calls there were with the same: in which order threads make their calls is up to time. The replies of
the last while are left in /out/liar-SEED.json (tests/run keeps the log directory when something fails).
With --replay each call gets what the next one like it got then, with its own xid, keys and addresses:

    scripts/vm --nodes 2 --client rust --server c --add FILE -- \
        python3 /run/payload/tests/guest/liar.py --replay /run/payload/add/FILE

The mount may get any error, but no call may hang; memory that was read into is nobody's afterwards; when
the server is honest again, the same mount works, what is in the files is what was written there, and
nothing is left over.
"""

import argparse
import collections
import errno
import json
from random import Random

from lib import *
from mutate import WORDS, change_bytes, words
from proxy import *

OWN = SERVER if NODES == 1 else "10.0.0.2"
LIAR = 20051
ACCESS = 4
AT, FOLDER = "/mnt/liar", "liar"
SIZES = (3, 700, 3500, 65536, 65537, 300000)
ROOM, GUARD = 512 << 10, 8192
# Replies that are left for --replay. That a call hangs is seen 150 s later only, with many others since.
KEPT = 4000
OPTIONS = (f"vers=3,proto=rdma,port={LIAR},soft,timeo=30,retrans=1,noac,nolock,mountproto=tcp,"
           f"mountaddr={SERVER}")

parser = argparse.ArgumentParser()
parser.add_argument("--count", type=int, default=20_000 if LONG else 400)
parser.add_argument("--seed", default=f"{int.from_bytes(os.urandom(4), 'big'):08x}")
parser.add_argument("--replay")
args = parser.parse_args()
saved = json.loads(read(args.replay)) if args.replay else None
if saved:
    args.seed, args.count = saved["seed"], len(saved["replies"])
told, outcomes = collections.Counter(), collections.Counter()


def content(size):
    return random_bytes(SIZES[-1], size % 7)[:size]


def kind(call):
    return f"{call.procedure}/{len(call.keys)}"


class Noted:
    """A connection, and a note of what is done with it to answer one call."""

    def __init__(self, connection, call):
        self.connection, self.done = connection, []
        self.note = {"call": kind(call), "xid": call.xid, "segments": call.segments, "lie": "honest",
                     "done": self.done}

    def honest(self, call):
        self.done.append(("honest",))
        Proxy.honest(self.connection.proxy, self.connection, call)

    def reply(self, call):
        self.done.append(("reply",))
        return self.connection.reply(call)

    def send(self, message, key=None):
        self.done.append(("send", bytes(message).hex(), key))
        self.connection.send(message, key)

    def write(self, key, at, data):
        # It is four bytes, or all of it is the same.
        self.done.append(("write", key, at, data[:4].hex(), len(data)))
        self.connection.write(key, at, data)

    def disconnect(self):
        self.done.append(("disconnect",))
        self.connection.disconnect()


class Liar(Proxy):
    """The proxy, which lies in a third of its replies while `lies` is set, or says again what is saved."""

    def __init__(self, *where):
        self.lies, self.counts, self.kept = False, collections.Counter(), collections.deque(maxlen=KEPT)
        self.old, self.late, self.said = [], [], [b"\0" * 28]
        # What is left to be said again, since when nothing was, and what now stands for what.
        self.again, self.since, self.new = collections.defaultdict(collections.deque), 0, {}
        for note in saved["replies"] if saved else ():
            self.again[note["call"]].append(note)
        super().__init__(*where)

    def honest(self, connection, call):
        if not self.lies:
            super().honest(connection, call)
            return
        noted = Noted(connection, call)
        self.kept.append(noted.note)
        if saved:
            self.replay(noted, call)
            return
        random = Random(f"{args.seed}/{kind(call)}/{self.counts[kind(call)]}")
        self.counts[kind(call)] += 1
        while self.late and random.random() < 0.5:
            # What was put off; the connection may be another one by now.
            told["late"] += 1
            noted.send(self.late.pop(0))
        lie = random.choice(LIES) if random.random() < 0.35 else honest
        noted.note["lie"] = lie.__name__
        told[lie.__name__] += 1
        lie(self, noted, call, random)
        for key in call.keys:
            place = (call.writes or [[(key, 0, 0x1000)]])[0][0]
            self.old = self.old[-20:] + [(key, place[2])]

    def replay(self, noted, call):
        """Answer as the next call of this kind was answered then."""
        if not self.again[kind(call)]:
            noted.honest(call)
            return
        old = self.again[kind(call)].popleft()
        self.since = time.monotonic()
        noted.note["lie"] = old["lie"]
        told[old["lie"]] += 1
        self.new[words(old["xid"])] = words(call.xid)
        for (old_key, _, old_at), (key, _, at) in zip(old["segments"], call.segments):
            self.new[words(old_key)] = words(key)
            if old_at:
                self.new[struct.pack(">Q", old_at)] = struct.pack(">Q", at)
        for what, *rest in old["done"]:
            if what == "send":
                message, key = rest
                key = None if key is None else self.now_number(">I", key)
                noted.send(self.now(bytes.fromhex(message)), key)
            elif what == "write":
                key, at, data, size = rest
                noted.write(self.now_number(">I", key), self.now_number(">Q", at),
                            (bytes.fromhex(data) * size)[:size])
            elif what == "disconnect":
                noted.disconnect()
            else:
                getattr(noted, what)(call)

    def now(self, message):
        """A saved message, with xids, keys and addresses of this run."""
        out, at = b"", 0
        while at < len(message):
            size = 8 if message[at:at + 8] in self.new else 4
            part = message[at:at + size]
            out, at = out + self.new.get(part, part), at + size
        return out

    def now_number(self, form, number):
        return struct.unpack(form, self.now(struct.pack(form, number)))[0]

    def save(self, why):
        path = f"/out/liar-{args.seed}.json"
        replies = list(self.kept)
        write(path, json.dumps({"why": why, "seed": args.seed, "replies": replies}))
        say(f"what was told is in {path} of the log directory's out/, {len(replies)} replies")


def honest(liar, connection, call, random):
    connection.honest(call)


def lie_in_bytes(liar, connection, call, random):
    message = connection.reply(call).encode()
    for _ in range(random.choice((1, 1, 2, 4))):
        message = change_bytes(random, message, liar.said)
    liar.said = liar.said[-20:] + [message[:500] or b"\0"]
    connection.send(message[:4096] or b"\0")


def lie_in_header(liar, connection, call, random):
    message = bytearray(connection.reply(call).encode())
    at = random.choice((4, 8, 8, 12, 12, 16, 20, 24))
    message[at:at + 4] = words(random.choice(WORDS))
    connection.send(message)


def lie_in_chunks(liar, connection, call, random):
    reply = connection.reply(call)
    segment = (random.choice([*call.keys, random.getrandbits(32)]), random.choice(WORDS), random.getrandbits(64))
    kind = random.randrange(6)
    if kind == 0:
        reply.reads = [(random.choice(WORDS), *segment)]
    elif kind == 1:
        reply.writes = [[segment] * random.randrange(5)] * random.randrange(3)
    elif kind == 2:
        reply.reply = [segment] * random.randrange(4)
    elif kind == 3:
        reply.proc ^= 1
    else:
        chunks = [c for c in (*reply.writes, reply.reply) if c]
        if chunks:
            chunk = random.choice(chunks)
            at = random.randrange(len(chunk))
            key, length, offset = chunk[at]
            chunk[at] = random.choice(((key, random.choice(WORDS), offset), (key ^ 1, length, offset),
                                       (key, length + 1 & 0xffffffff, offset), (key, length, offset ^ 4096)))
    connection.send(reply.encode()[:4096])


def denied(liar, connection, call, random):
    """Nothing that is asked for is allowed."""
    reply = connection.reply(call)
    if call.procedure == ACCESS and len(reply.body) > 4:
        reply.body = reply.body[:-4] + words(0)
    connection.send(reply.encode())


def lie_in_credits(liar, connection, call, random):
    reply = connection.reply(call)
    reply.credits = random.choice((0, 1, 2, 1 << 31, 0xffffffff))
    connection.send(reply.encode())


def right_key(liar, connection, call, random):
    connection.send(connection.reply(call).encode(), random.choice(call.keys) if call.keys else None)


def wrong_key(liar, connection, call, random):
    if random.random() < 0.7:
        # The connection does not survive it.
        return connection.honest(call)
    key = random.choice([random.getrandbits(32), 0, *(key for key, _ in liar.old)])
    connection.send(connection.reply(call).encode(), key)


def twice(liar, connection, call, random):
    message = connection.reply(call).encode()
    for _ in range(random.choice((2, 2, 3, 20))):
        connection.send(message)


def never(liar, connection, call, random):
    if random.random() < 0.7:
        connection.honest(call)


def later(liar, connection, call, random):
    liar.late.append(connection.reply(call).encode())


def calls(liar, connection, call, random):
    for n in range(random.choice((1, 3, 20))):
        message = words(call.xid + n & 0xffffffff, 1, 32, 0, 0, 0, 0) \
            + words(call.xid + n & 0xffffffff, 0, 2, 0x40000000, 1, 0, 0, 0, 0, 0)
        connection.send(change_bytes(random, message, liar.said) or b"\0")
    connection.honest(call)


def hang_up(liar, connection, call, random):
    if random.random() < 0.7:
        return connection.honest(call)
    if call.writes and random.random() < 0.5:
        key, length, at = call.writes[0][0]
        connection.write(key, at, b"\xee" * (length // 2))
    connection.disconnect()


def reach(liar, connection, call, random):
    """An RDMA Write where the call grants none, any more or at all."""
    if random.random() < 0.7 or not liar.old:
        return connection.honest(call)
    connection.honest(call)
    key, at = random.choice(liar.old)
    connection.write(key, at, b"late")


LIES = (lie_in_bytes, lie_in_bytes, lie_in_bytes, lie_in_header, lie_in_chunks, lie_in_chunks, lie_in_credits,
        denied, right_key, wrong_key, twice, never, later, calls, hang_up, reach)


class Load(threading.Thread):
    """Reads, writes and lists until told to stop; every error is right, memory is looked after."""

    def __init__(self, number):
        super().__init__(daemon=True)
        self.random, self.number = Random(number), number
        self.room = mmap.mmap(-1, ROOM + 2 * GUARD)
        self.wrong, self.stop, self.since, self.buffer = None, False, None, (0, 0)
        self.start()

    def run(self):
        view = memoryview(self.room)
        blank = b"\x5a" * len(view)
        view[:] = blank
        while not self.stop and not self.wrong:
            # Nobody writes here between two calls, whatever was granted for the one before.
            time.sleep(self.random.random() * 0.05)
            if view != blank:
                self.wrong = "memory was written to after the call had ended"
                return
            self.since = time.monotonic()
            try:
                outcomes[self.once(view)] += 1
            except OSError as error:
                outcomes[os.strerror(error.errno)] += 1
            self.since = None
            start, end = self.buffer
            if bytes(view[:start]) != blank[:start] or bytes(view[end:]) != blank[end:]:
                self.wrong = "memory beside the buffer was written to"
            view[:] = blank

    def once(self, view):
        kind, size = self.random.randrange(8), self.random.choice(SIZES)
        self.buffer = 0, 0
        if kind < 4:
            fd = os.open(f"{AT}/{FOLDER}/{size}", os.O_RDONLY | os.O_DIRECT)
            try:
                start = 512 + self.random.randrange(GUARD - 512) // 4 * 4
                self.buffer = start, start + size
                os.preadv(fd, [view[start:start + size]], 0)
            finally:
                os.close(fd)
            return "reads"
        if kind < 6:
            write_file(f"{AT}/{FOLDER}/new-{self.number}", content(size), direct=True)
            return "writes"
        if kind == 6:
            os.listdir(f"{AT}/{FOLDER}")
            return "lists"
        os.statvfs(AT)
        return "others"


def left():
    """RDMA objects of the kernel: those of processes have a number of one."""
    return {kind: sum(" pid " not in line for line in rdma_objects(kind)) for kind in ("qp", "mr", "cq", "pd")}


with check("an honest server, and files"):
    base, objects = use_count(), left()
    on_server(f"rm -rf {EXPORT}/{FOLDER}; mkdir -m 777 {EXPORT}/{FOLDER}")
    with mounted("3") as at:
        for size in SIZES:
            write_file(f"{at}/{FOLDER}/{size}", content(size))
    sums = server_sums(f"{EXPORT}/{FOLDER}")
    liar = Liar(OWN, LIAR, SERVER, f"{RDMA}0")
    results.keep = liar.save
    # Half of the runs take the way of devices that are believed.
    write(TRUST, str(int(args.seed, 16) % 2))
    mount("3", at=AT, opts=OPTIONS, server=OWN)
    for size in SIZES:
        equal(sha(read_file(f"{AT}/{FOLDER}/{size}", direct=True)), sha(content(size)), f"file of {size} bytes")

say(f"seed {args.seed}")
with check(f"{args.count} replies of a server that lies: no call hangs, no memory is touched",
           limit=9000 if LONG else 900):
    load = [Load(n) for n in range(6)]
    liar.since, liar.lies = time.monotonic(), True
    try:
        end = time.monotonic() + (8900 if LONG else 800)
        # Not all that is to be said again may be asked for.
        while told.total() < args.count and not (saved and time.monotonic() - liar.since > 60 * SLOWNESS):
            time.sleep(0.5)
            for one in load:
                expect(one.wrong is None, one.wrong)
                since = one.since
                expect(since is None or time.monotonic() - since < 150, "a call has no end after 150 s")
            expect(time.monotonic() < end, f"there were {told.total()} replies only")
    finally:
        liar.lies = False
        for one in load:
            one.stop = True
        for one in load:
            one.join(150)
        say(f"{told.total() - told['honest']} of them lies (some say the truth after all)")
        say("told: " + ", ".join(f"{value} {key}" for key, value in told.most_common()))
        say("got: " + ", ".join(f"{value} {key}" for key, value in outcomes.most_common()))
        say(f"connections: {liar.accepted}")
        # For what is seen only later, too: words of a kernel, memory that is lost.
        liar.save("none so far")
    expect(not any(one.is_alive() for one in load), "a call does not end with an honest server")
    expect(not any(one.wrong for one in load), str([one.wrong for one in load]))
    equal(liar.errors, [], "errors of the server's thread")
    expect(saved or outcomes["reads"] and outcomes["writes"] and any(key[0].isupper() for key in outcomes),
           "there was no load, or no trouble")

with check("an honest server again: the same mount works, the files are as they were", limit=300):
    end = time.monotonic() + 90
    for size in SIZES:
        while True:
            try:
                read_file(f"{AT}/{FOLDER}/{size}", direct=True)
                break
            except OSError as error:
                expect(time.monotonic() < end, f"still {error}")
                if error.errno == errno.EACCES:
                    # NFS remembers what it was denied until the file changes, or memory is wanted.
                    write("/proc/sys/vm/drop_caches", "2")
                time.sleep(1)
    write_file(f"{AT}/{FOLDER}/after", content(65536), direct=True)
    # What it believes of sizes and times is what it was told last: another mount looks for itself.
    run("umount", AT, timeout=120)
    mount("3", at=AT, opts=OPTIONS, server=OWN)
    for size in SIZES:
        equal(sha(read_file(f"{AT}/{FOLDER}/{size}", direct=True)), sha(content(size)), f"file of {size} bytes")
    after = server_sums(f"{EXPORT}/{FOLDER}")
    equal({name: after.get(name) for name in sums}, sums, "files on the server")
    equal(after.get("after"), sha(content(65536)), "what was written on the same mount")

with check("nothing is left over", limit=240):
    write(TRUST, "0")
    run("umount", AT, timeout=120)
    wait_for(lambda: use_count() == base, 60, f"use count {base}, it is {use_count()}")
    liar.end()
    wait_for(lambda: left() == objects, 60, f"{objects}, instead {left()}")
    on_server(f"rm -rf {EXPORT}/{FOLDER}")
done()
