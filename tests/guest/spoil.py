# SPDX-License-Identifier: GPL-2.0
"""A mount of a server that spoils its replies: what hostile.py is made of.

Who imports this gets a proxy (proxy.py) in front of nfsd, a folder with room for files of the sizes he
wants, calls of each kind whose results are known, and spoilers: functions of the proxy's connection and
of a call, which do something else than to answer it.
"""

import concurrent.futures
import errno

from lib import *
from proxy import *

OWN = SERVER if NODES == 1 else "10.0.0.2"
HOSTILE = 20050
AT = "/mnt/hostile"
FOLDER = "hostile"
SIZE = 65536
BIG = 0xffffffff
COUNTED = ("bad_reply_count", "connect_count", "bad_xids", "local_inv_needed")
pool = concurrent.futures.ThreadPoolExecutor(200)
# What events have to tell of spoiled replies, in order: (end of the name, part of the text).
told = []


# --- the client's side --------------------------------------------------------------------------


def hostile_options(vers="3", extra="", timeo=20):
    text = f"vers={vers},proto=rdma,port={HOSTILE},timeo={timeo * SLOWNESS},retrans=2,noac"
    if vers == "3":
        text += f",nolock,mountproto=tcp,mountaddr={SERVER}"
    return text + ("," + extra if extra else "")


def through_proxy(vers="3", extra=""):
    return mounted(vers, at=AT, opts=hostile_options(vers, extra), server=OWN)


def content(size):
    return random_bytes(SIZE + 1, size % 7)[:size]


def fetch(size=SIZE):
    """One READ of the file of this size, by direct I/O."""
    fd = os.open(f"{AT}/{FOLDER}/{size}", os.O_RDONLY | os.O_DIRECT)
    try:
        room = memoryview(mmap.mmap(-1, size))
        equal(os.preadv(fd, [room], 0), size, "bytes read")
        expect(room == content(size), "what was read is not what was written")
    finally:
        os.close(fd)


def stat_fs(_=None):
    """One FSSTAT: a call without chunks."""
    expect(os.statvfs(AT).f_blocks > 0, "no blocks")


def store():
    """One WRITE, by direct I/O."""
    path = f"{AT}/{FOLDER}/new"
    write_file(path, content(SIZE), direct=True)
    equal(on_server(f"sha256sum <{EXPORT}/{FOLDER}/new").split()[0], sha(content(SIZE)), "sum")


folders = iter(range(1000))


def list_folder():
    """READDIRPLUS, whose results may need a Reply chunk."""
    path = f"{FOLDER}/d{next(folders)}"
    on_server(f"cd {EXPORT} && mkdir {path} && cd {path} && touch a b c")
    equal(sorted(os.listdir(f"{AT}/{path}")), ["a", "b", "c"], "names")


ACTIONS = {READ: fetch, FSSTAT: stat_fs, WRITE: store, READDIRPLUS: list_folder}


def spoiled(name, *spoilers, procedure=READ, action=None, fails=0, bad=0, connects=0, xids=0,
            inv=None, tells=None):
    """A check: the next replies are spoiled, and then things are as they should be.

    `bad`, `connects`, `xids` are how much the client counts; None if that is open. `tells(call)` is what
    events tell of it; a reply that fails its call makes no sense.
    """
    action = action or ACTIONS[procedure]
    if not tells and fails and bad:
        def tells(call):
            return [("reply_hdr_err", f"xid={call.xid:#010x} version=1 proc=")]

    def noted(spoiler):
        def spoil(connection, call):
            told.extend(tells(call) if tells else ())
            spoiler(connection, call)
        return spoil
    with check(name):
        before = xprt_stats(AT)
        for spoiler in spoilers:
            proxy.spoil(procedure, noted(spoiler))
        for _ in range(fails):
            try:
                action()
            except OSError as error:
                equal(error.errno, errno.EIO, "error")
            else:
                raise Failed("no error")
        if not fails:
            action()
        after = xprt_stats(AT)
        honest()
        # Of two replies the second may come when the action is over; those of honest() came after it.
        after["bad_xids"] = xprt_stats(AT)["bad_xids"]
        for field, wanted in zip(COUNTED, (bad, connects, xids, inv)):
            if wanted is not None:
                equal(after[field] - before[field], wanted, field)


def honest():
    equal(proxy.spoilers, [], "replies that were to be spoiled")
    fetch()
    stat_fs()
    equal(proxy.errors, [], "errors of the server's thread")


# --- the server's side --------------------------------------------------------------------------


def changed(change):
    """A spoiler: `change(reply, call)` changes the honest reply."""
    def spoil(connection, call):
        reply = connection.reply(call)
        change(reply, call)
        connection.send(reply.encode(), reply.invalidate)
    return spoil


def changes(**fields):
    """A spoiler that sets fields of the reply, which may be functions of reply and call."""
    def change(reply, call):
        for name, value in fields.items():
            setattr(reply, name, value(reply, call) if callable(value) else value)
    return changed(change)


def before(*messages, invalidate=None):
    """A spoiler that sends other messages first: functions of the call, or bytes."""
    def spoil(connection, call):
        for message in messages:
            connection.send(message(call) if callable(message) else message)
        proxy.honest(connection, call)
    return spoil


def raw(message):
    """A spoiler that sends another message instead: a function of the call."""
    return lambda connection, call: connection.send(message(call))


def header(xid, proc=MSG, version=1):
    return words(xid, version, 64, proc)


def cut(size):
    def spoil(connection, call):
        connection.send(connection.reply(call).encode()[:size])
    return spoil


def twice(connection, call):
    message = connection.reply(call).encode()
    connection.send(message)
    connection.send(message)


def drop(connection, call):
    pass


def hang_up(connection, call):
    connection.disconnect()


def backward(xid, *compound):
    """A CB_NULL call, or CB_COMPOUND with these words, by AUTH_SYS."""
    credential = (1, 20, 0, 0, 0, 0, 0) if compound else (0, 0)
    return header(xid) + words(0, 0, 0) + words(xid, 0, 2, 0x40000000, 1, int(bool(compound)), *credential, 0, 0,
                                                *compound)


def segment(**fields):
    """A function for `changes`: the returned Write chunk with its first segment changed."""
    def change(reply, call):
        names = ("key", "length", "at")
        old = dict(zip(names, reply.writes[0][0]))
        new = {name: fields[name](old[name]) if name in fields else old[name] for name in names}
        return [[tuple(new.values())] + reply.writes[0][1:]]
    return change


def used(chunk):
    """The segments that have something, which are not all."""
    some = [segment for segment in chunk if segment[1]]
    if len(some) == len(chunk):
        proxy.errors.append("all segments were used")
    return some


# --- both -----------------------------------------------------------------------------------------

base = use_count()


def left():
    """RDMA objects of the kernel: those of processes have a number of one."""
    return {kind: sum(" pid " not in line for line in rdma_objects(kind))
            for kind in ("qp", "mr", "cq", "pd")}


objects = left()
proxy = Proxy(OWN, HOSTILE, SERVER, f"{RDMA}0")
on_server(f"rm -rf {EXPORT}/{FOLDER}; mkdir -m 777 {EXPORT}/{FOLDER}")
