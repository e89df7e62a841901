# SPDX-License-Identifier: GPL-2.0
"""A server that does what no server may do: the client must neither suffer nor hang.

The proxy passes RPCs on to nfsd, so what is read and written is real; see spoil.py. Most checks
spoil one reply. What the client makes of it is one of these:
  right       the RPC succeeds, at once, or again on another connection
  EIO         the RPC fails, the connection stays (row W43)
"""

from events import *
from shim import PARAMETERS, fail, shim, shim_set
from spoil import *


def replies():
    """Replies that make no sense, and what events tell of them."""
    with traced(run) as events:
        senseless()
    peer = rf"peer=\[{OWN}\]:{HOSTILE} "
    with check("events: what made no sense of each of these replies, and whose it was"):
        names = ("xprtrdma_reply_short_err", "xprtrdma_reply_vers_err", "xprtrdma_reply_hdr_err",
                 "xprtrdma_err_vers", "xprtrdma_err_chunk", "xprtrdma_err_unrecognized")
        seen = [e for e in events if e.name in names]
        wanted = [(name, text) for name, text in told if name != "reply_rqst_err"]
        equal(collections.Counter(e.name for e in seen),
              collections.Counter("xprtrdma_" + name for name, _ in wanted), "how often each came")
        equal(sorted({e.name for e in seen}), sorted(names), "names of events")
        tasks = {number(t, "xid"): task(t) for t in of(events, "xprtrdma_marshal")}
        for event, (name, text) in zip(seen, wanted):
            who = peer if "_reply_" in event.name else f"{tasks[number(event.text, 'xid')]} "
            expect(event.name == "xprtrdma_" + name and re.fullmatch(f"{who}{text}.*", event.text),
                   f"{event} instead of {name} {who}{text}")
    with check("events: replies to nothing"):
        texts = of(events, "xprtrdma_reply_rqst_err")
        unknown = [text for name, text in told if name == "reply_rqst_err"]
        expect(len(unknown) > 2, "there were hardly any")
        for text in unknown:
            equal(len([t for t in texts if re.fullmatch(peer + text, t)]), 1, f"{text} in {texts}")
    with check("events: memory that the client has to invalidate itself, and when that is done"):
        equal(fenced(events, "xprtrdma_wc_li_done"), {}, "regions that were not")
        expect(len(of(events, "xprtrdma_wc_li_done")) > 50, "there were hardly any")


def crafted():
    """Reads the file that begins as the results of a READ of four bytes end."""
    fd = os.open(f"{AT}/{FOLDER}/crafted", os.O_RDONLY | os.O_DIRECT)
    try:
        os.preadv(fd, [mmap.mmap(-1, SIZE)], 0)
    finally:
        os.close(fd)


def fenced(events, completion):
    """The regions for which no such completion came, by task: of those of a call one has it."""
    pending = {}
    for e in events:
        if e.name == "xprtrdma_mr_localinv":
            pending.setdefault(task(e.text), set()).add(number(e.text, "mr.id"))
        elif e.name == completion:
            tasks = [t for t, regions in pending.items() if number(e.text, "mr.id") in regions]
            expect(tasks and e.text.endswith("status=SUCCESS (0/0x0)"), f"{e.text}, of {pending}")
            del pending[tasks[0]]
    return pending


def senseless():
    spoiled("an honest server", lambda *a: proxy.honest(*a), bad=0, inv=1)
    spoiled("less than a fixed header", before(*(bytes(n) for n in range(16))), bad=16,
            tells=lambda call: [("reply_short_err", "xid=0x00000000 version=0 proc=0")] * 16)
    spoiled("other versions", before(*(lambda call, v=v: header(call.xid, version=v) + bytes(12)
                                       for v in (0, 2, BIG))), bad=3,
            tells=lambda call: [("reply_vers_err", f"xid={call.xid:#010x} version={v} proc=0")
                                for v in (0, 2, BIG)])
    spoiled("unknown XIDs", before(*(lambda call, d=d: header((call.xid + d) & BIG) + bytes(12)
                                     for d in (1 << 16, 1 << 31))), xids=2,
            tells=lambda call: [("reply_rqst_err", f"xid={call.xid + d & BIG:#010x} version=1 proc=0")
                                for d in (1 << 16, 1 << 31)])
    for size in (16, 20, 24, 27, 28, 32, 36, 47):
        spoiled(f"a header of {size} bytes", cut(size), fails=1, bad=1)
    for proc in (NOMSG, MSGP, RDMA_DONE, 5, 99, BIG):
        spoiled(f"procedure {proc}", changes(proc=proc), fails=1, bad=1,
                tells=lambda call: [("reply_hdr_err", f"xid={call.xid:#010x} version=1 proc={proc}")])
    for name, body, event, text in (
            ("without a code", b"", "reply_hdr_err", "version=1 proc=4"),
            ("version, without versions", words(1), "reply_hdr_err", "version=1 proc=4"),
            ("version 1 to 1", words(1, 1, 1), "err_vers", r"versions=\[1, 1\]"),
            ("version 2 to 1", words(1, 2, 1), "err_vers", r"versions=\[2, 1\]"),
            ("version 0 to 2^32-1", words(1, 0, BIG), "err_vers", rf"versions=\[0, {BIG}\]"),
            ("chunk", words(2), "err_chunk", ""), ("unknown", words(7), "err_unrecognized", "procedure=7")):
        spoiled(f"RDMA_ERROR: {name}", raw(lambda call: header(call.xid, ERROR) + body), fails=1, bad=1,
                tells=lambda call: [(event, f"xid={call.xid:#010x} {text}".strip())])

    spoiled("a Read list", changes(reads=[(0, 1, 2, 3)]), fails=1, bad=1)
    spoiled("two Write chunks", changes(writes=lambda r, c: r.writes * 2), fails=1, bad=1)
    spoiled("a segment too much", changes(writes=lambda r, c: [r.writes[0] * 2]), fails=1, bad=1)
    spoiled("a longer verifier, which the decoder finds the results behind: in the payload",
            changes(body=lambda r, c: r.body[:12] + words(0, 12) + bytes(12) + r.body[20:]), action=crafted,
            fails=1, bad=1)
    spoiled("the results of a READ come without attributes, so they are shorter than the client had expected",
            changes(body=lambda r, c: r.body[:28] + words(0) + r.body[32 + 84:]))
    spoiled("a Write chunk without segments, and no data", changes(writes=[[]]), fails=1, bad=0)
    spoiled("1000 segments announced",
            raw(lambda c: header(c.xid) + words(0, 1, 1000) + bytes(64)), fails=1, bad=1)
    spoiled("2^32-1 segments announced",
            raw(lambda c: header(c.xid) + words(0, 1, BIG) + bytes(64)), fails=1, bad=1)
    spoiled("150 Write chunks", changes(writes=[[(1, 2, 3)]] * 150, body=b""), fails=1, bad=1)
    spoiled("another handle", changes(writes=segment(key=lambda k: k ^ 1)), fails=1, bad=1)
    spoiled("another offset", changes(writes=segment(at=lambda a: a + 1)), fails=1, bad=1)
    for add in (1, 4, BIG - SIZE):
        spoiled(f"{add} bytes more than the segment has",
                changes(writes=segment(length=lambda n: n + add)), fails=1, bad=1)
    spoiled("a hole in the payload",
            changes(writes=lambda r, c: [[(r.writes[0][0][0], 1, r.writes[0][0][2]),
                                          (r.writes[0][1][0], 1, r.writes[0][1][2])]]),
            action=lambda: fetch(SIZE + 1), fails=1, bad=1)
    spoiled("no Write list, and no data", changes(writes=[]), fails=1, bad=0)
    spoiled("no RPC message", raw(lambda c: header(c.xid) + bytes(12)), procedure=FSSTAT, fails=1, bad=1)
    spoiled("no RPC message, and an empty Write list", changes(writes=[], body=b""), fails=1, bad=1)
    spoiled("a Reply chunk that was not offered", changes(reply=lambda r, c: r.writes[0]),
            fails=1, bad=1)
    spoiled("an empty Reply chunk that was not offered",
            changes(reply=lambda r, c: fill(r.writes[0], 0)), fails=1, bad=1)

    for name, fields in (("a Write chunk", {"writes": [[(1, 4, 3)]]}),
                         ("a Reply chunk", {"reply": [(1, 4, 3)]}),
                         ("NOMSG", {"proc": NOMSG, "reply": [(1, 4, 3)]})):
        spoiled(f"{name} in the reply to a call without chunks", changes(**fields),
                procedure=FSSTAT, fails=1, bad=1)
    spoiled("an empty Write chunk in the reply to a call without chunks",
            changes(writes=[[(1, 0, 3)]]), procedure=FSSTAT)
    spoiled("3000 bytes behind the results", changes(body=lambda r, c: r.body + bytes(3000)),
            procedure=FSSTAT)
    for size in (4, 8, 12, 20, 23):
        spoiled(f"an RPC header of {size} bytes", changes(body=lambda r, c: r.body[:size]),
                procedure=FSSTAT, connects=1)
    spoiled("more than the client can receive", raw(lambda call: bytes(8192)),
            procedure=FSSTAT, connects=1)
    spoiled("the same reply twice", twice, procedure=FSSTAT, xids=1,
            tells=lambda call: [("reply_rqst_err", f"xid={call.xid:#010x} version=1 proc=0")])
    spoiled("the same reply twice, with chunks", twice, xids=None)
    spoiled("no reply", drop, connects=1)
    spoiled("no reply to a call without chunks", drop, procedure=FSSTAT, connects=1)

    # As servers of Linux did before 4.13.
    spoiled("segments that were not used are left out of the Write chunk",
            changes(writes=lambda r, c: [used(r.writes[0])]), action=lambda: fetch(SIZE + 1))
    spoiled("segments that were not used are left out of the Reply chunk",
            changes(reply=lambda r, c: used(r.reply)), procedure=READDIRPLUS)
    for name, fields in (
            ("a byte more than the segment has",
             {"reply": lambda r, c: [(k, c.reply[0][1] + 1, a) for k, _, a in r.reply]}),
            ("another handle", {"reply": lambda r, c: [(k ^ 1, n, a) for k, n, a in r.reply]}),
            ("a segment too much", {"reply": lambda r, c: r.reply + r.reply}),
            ("nothing in it", {"reply": lambda r, c: fill(r.reply, 0)}),
            ("MSG as well", {"proc": MSG}),
            ("left out", {"reply": None}),
            ("and a Write chunk", {"writes": lambda r, c: [r.reply]})):
        spoiled(f"Reply chunk: {name}", changes(**fields), procedure=READDIRPLUS, fails=1, bad=1)


def connect_again():
    """Connections have the settings of the time when they are made."""
    accepted = proxy.accepted
    proxy.order(lambda: proxy.connection.disconnect())
    fetch()
    equal(proxy.accepted, accepted + 1, "connections")


def denied(result):
    """An access has failed, and for no other reason than that it is not allowed. (iWARP does not tell that.)"""
    expect(isinstance(result, Broken), f"the access {result}")
    expect(RDMA == "siw" or result.args[0] == e.IBV_WC_REM_ACCESS_ERR, f"the access ended with status {result}")


def pad_key(_, call):
    """The key of the place where the padding of a READ of odd length goes."""
    payload, pad = call.keys
    expect(payload != pad, "the pad has the key of the payload")
    return pad


def keys():
    """Remote keys: Send with Invalidate, and access that was not granted."""
    invalidate = {"invalidate": lambda r, c: c.keys[0]}
    odd = SIZE + 1
    with check("a connection that trusts the server"), trusting():
        connect_again()
    spoiled("a call's key is invalidated", changes(**invalidate), inv=0)
    spoiled("a Reply chunk's key is invalidated", changes(**invalidate), procedure=READDIRPLUS)
    spoiled("a failed call's key is invalidated", changes(proc=99, **invalidate), fails=1, bad=1, inv=0)
    spoiled("the payload's key of an odd READ is invalidated", changes(**invalidate),
            action=lambda: fetch(odd), inv=0)
    with check("a connection that does not"):
        connect_again()
    spoiled("a call's key is invalidated, and the server is not trusted", changes(**invalidate), inv=1)
    spoiled("a failed call's key is invalidated, and the server is not trusted", changes(proc=99, **invalidate),
            fails=1, bad=1, inv=1)
    accepted = proxy.accepted
    spoiled("the pad's key is invalidated: the RPC succeeds",
            changes(invalidate=pad_key), action=lambda: fetch(odd), connects=None)
    with check("behind that there is a new connection"):
        wait_for(lambda: proxy.accepted == accepted + 1, 10, "another connection")
    spoiled("the pad's key is invalidated, again and again",
            *[changes(invalidate=pad_key)] * 5,
            action=lambda: [fetch(odd) for _ in range(5)], connects=None)
    spoiled("a key that never was", changes(invalidate=lambda r, c: c.keys[0] ^ 0x55555500),
            connects=1, bad=0)

    for name, procedure, spoil in (
            ("by the reply to another READ", READ, lambda c, call, key:
             c.send(c.reply(call).encode(), key)),
            ("by the reply to a call without chunks", FSSTAT, lambda c, call, key:
             c.send(c.reply(call).encode(), key)),
            ("by 8 bytes", FSSTAT, lambda c, call, key: c.send(bytes(8), key)),
            ("by another version", FSSTAT, lambda c, call, key:
             c.send(header(call.xid, version=2) + bytes(12), key)),
            ("by a reply to nothing", FSSTAT, lambda c, call, key:
             c.send(header(call.xid ^ 0x10000) + bytes(12), key)),
            ("by a callback", FSSTAT, lambda c, call, key:
             c.send(backward(call.xid ^ 0x10000), key))):
        with check(f"the key of a call is invalidated {name}"):
            old = xprt_stats(AT)
            held = []
            proxy.spoil(READ, lambda connection, call: held.append(call))
            other = pool.submit(fetch)
            wait_for(lambda: held, 10, "a call to hold")
            proxy.spoil(procedure, lambda c, call: spoil(c, call, held[0].keys[0]))
            ACTIONS[procedure]()
            other.result(30 * SLOWNESS)
            honest()
            new = xprt_stats(AT)
            expect(new["bad_reply_count"] > old["bad_reply_count"], "it is not counted")
            equal(new["connect_count"] - old["connect_count"], 1, "connect_count")

    def beyond(connection, call):
        for key, length, at in call.writes[0]:
            try:
                connection.write(key, at + length - 4, b"beyond!!", refused=True)
            except Broken as error:
                return denied(error)
        proxy.errors.append("an RDMA Write beyond the segment succeeded")

    def wrong_way(connection, call):
        try:
            if call.writes:
                connection.read(call.keys[0], call.writes[0][0][2], 8)
            else:
                connection.write(call.keys[0], call.reads[0][3], b"overwrit", refused=True)
        except Broken as error:
            return denied(error)
        proxy.errors.append("access of the wrong kind succeeded")

    def immediate(connection, call):
        # It uses a Receive up, in which an old message may be.
        key, length, at = call.writes[0][0]
        connection.rdma(e.IBV_WR_RDMA_WRITE_WITH_IMM, key, at, min(length, 100))
        with contextlib.suppress(Broken):
            connection.wait_broken(5)

    if RDMA != "siw":
        spoiled("RDMA Write with immediate data instead of a reply", immediate, bad=0, connects=1)
    spoiled("RDMA Write beyond the segment", beyond, connects=1)
    spoiled("RDMA Read of a Write chunk", wrong_way, connects=1)
    spoiled("RDMA Write to a Read chunk", wrong_way, procedure=WRITE, connects=1)

    for way, procedure in (("Write", READ), ("Read", WRITE)):
        for invalidate in (False, True):
            with check(f"RDMA {way} after the reply, invalidated by "
                       f"{'server' if invalidate else 'client'}"):
                calls = []

                def remember(connection, call):
                    calls.append(call)
                    reply = connection.reply(call)
                    connection.send(reply.encode(), call.keys[0] if invalidate else None)
                proxy.spoil(procedure, remember)
                ACTIONS[procedure]()
                call, = calls

                result = late(call)
                denied(result)
                honest()


@contextlib.contextmanager
def holding():
    """In the body the server has calls, which are in proxy.seen, and passes them on at its end."""
    proxy.holding = True
    proxy.seen.clear()
    try:
        yield
    finally:
        proxy.holding = False
        proxy.release()


def credits():
    """Grants that make no sense, and calls beyond them."""
    def nothing(connection, call):
        """The reply, and then one to no call, which grants one credit."""
        connection.send(connection.reply(call).encode())
        connection.send(words(call.xid ^ 0x5a5a5a5a, 1, 1, MSG) + bytes(12) + words(call.xid ^ 0x5a5a5a5a, 1))

    for name, spoiler, low, high in (
            ("a grant of 0", changes(credits=0), 1, 1), ("a grant of 2^31", changes(credits=1 << 31), 100, 128),
            ("a grant of 2^32 - 1", changes(credits=BIG), 100, 128),
            ("a grant of 1 in a reply to nothing", nothing, 64, 64)):
        with check(name):
            unknown = xprt_stats(AT)["bad_xids"]
            proxy.spoil(FSSTAT, spoiler)
            stat_fs()
            if spoiler == nothing:
                wait_for(lambda: xprt_stats(AT)["bad_xids"] > unknown, 10, "the reply to nothing is seen")
            with holding(), traced(run, "sunrpc/xprt_transmit", only=["xprtrdma_op_connect"]) as events:
                calls = [pool.submit(stat_fs) for _ in range(150)]
                wait_for(lambda: len(proxy.seen) >= low, 30, f"{low} calls at once")
                # More than may come would come now.
                time.sleep(2)
                count = len(proxy.seen)
            # Row C56: -EBADSLT, unless there are as many credits as slots.
            told = of(events, "xprt_transmit")
            expect(high == 128 or any("status=-57" in text for text in told), "no call had to wait for credit")
            for call in calls:
                call.result(60 * SLOWNESS)
            expect(low <= count <= high, f"{count} calls at once")
            honest()

    with check("grants of 0, 1 and 2^32 - 1 in turn, one with each reply, under many calls at once"):
        before, count = xprt_stats(AT), 450
        for n in range(count):
            proxy.spoil(FSSTAT, changes(credits=(0, 1, BIG)[n % 3]))
        for call in [pool.submit(stat_fs) for _ in range(count)]:
            call.result(60 * SLOWNESS)
        after = xprt_stats(AT)
        for field in ("connect_count", "bad_reply_count", "bad_xids"):
            equal(after[field], before[field], field)
        honest()

    def sent_again(answer):
        """The connection ends instead of a reply. Returns the calls without effect that come, and how long it took."""
        asked, before = [], xprt_stats(AT)

        def ask(connection, call):
            asked.append(call)
            answer(connection, call)

        proxy.spoil(NULL, ask)
        proxy.spoil(READ, hang_up)
        begun = time.monotonic()
        fetch()
        took = time.monotonic() - begun
        for key, more in (("connect_count", 1), ("bad_xids", 0), ("bad_reply_count", 0)):
            equal(xprt_stats(AT)[key] - before[key], more, key)
        equal((len(asked), proxy.spoilers), (1, []), "calls without effect, and what is still to come")
        say(f"{took:.1f} s")
        return took

    with check("a call that is sent again has another one before it, which gets the grant"):
        expect(sent_again(lambda connection, call: proxy.honest(connection, call)) < 5 * SLOWNESS, "it took longer")
        fetch()
    with check("a server that gives no answer to that one is waited for, but not for long"):
        # The call's own time would be a minute.
        expect(8 < sent_again(drop) < min(40 * SLOWNESS, 55), "it took another time")
        honest()
    with check("... and what it grants when it comes late counts"):
        kept = []

        def keep(connection, call):
            kept.append((connection, call))

        proxy.spoil(NULL, keep)
        proxy.spoil(READ, hang_up)
        # As nfsd does that is at work on it.
        proxy.spoil(READ, keep)
        reading = pool.submit(fetch)
        wait_for(lambda: len(kept) == 2, 60, "the call that is sent again")
        other = pool.submit(stat_fs)
        time.sleep(2)
        expect(not other.done(), "another call had a credit")
        proxy.order(lambda: proxy.honest(*kept[0]))
        other.result(20 * SLOWNESS)
        proxy.order(lambda: proxy.honest(*kept[1]))
        reading.result(20 * SLOWNESS)
        honest()

    with check("a new connection has one call, until the first reply grants more"):
        with holding():
            calls = [pool.submit(stat_fs) for _ in range(8)]
            wait_for(lambda: len(proxy.seen) >= 8, 30, "eight calls at once")
            proxy.order(lambda: (proxy.connection.disconnect(), proxy.seen.clear()))
            wait_for(lambda: proxy.seen, 30, "a call by the next connection")
            time.sleep(2)
            equal(len(proxy.seen), 1, "calls that the server has")
        for call in calls:
            call.result(60 * SLOWNESS)
        honest()

    with check("replies to XIDs near by, while calls wait for credits"):
        proxy.spoil(FSSTAT, changes(credits=0))
        stat_fs()
        with holding():
            calls = [pool.submit(stat_fs) for _ in range(8)]
            wait_for(lambda: proxy.seen, 10, "a call")
            time.sleep(2)
            first = proxy.seen[0]
            old = xprt_stats(AT)
            # They are counted in the byte order of the machine.
            count = int.from_bytes(first.xid.to_bytes(4, "big"), sys.byteorder)
            xids = [int.from_bytes(((count + n) & BIG).to_bytes(4, sys.byteorder), "big")
                    for n in range(-8, 9) if n]
            # An error of NFS: 10004.
            proxy.order(lambda: [proxy.connection.send(
                header(xid) + bytes(12) + words(xid, 1, 0, 0, 0, 0, 10004)) for xid in xids])
            wait_for(lambda: xprt_stats(AT)["connect_count"] > old["connect_count"], 30,
                     "another connection")
        # Calls that wait have XIDs already. One that was not sent has no reply.
        failed = sum(call.exception(60 * SLOWNESS) is not None for call in calls)
        unknown = xprt_stats(AT)["bad_xids"] - old["bad_xids"]
        say(f"procedure {first.procedure}: of 16 replies {unknown} were to nothing")
        equal(failed, 0, "calls that believed one")
        honest()


def endings():
    """Connections that end when they should not."""
    spoiled("disconnected instead of a reply", hang_up, connects=1)
    spoiled("disconnected instead of a reply without chunks", hang_up, procedure=FSSTAT, connects=1)
    spoiled("disconnected instead of a reply to a WRITE", hang_up, procedure=WRITE, connects=1)

    def middle(connection, call):
        key, length, at = call.writes[0][0]
        connection.write(key, at, b"\xee" * (length // 2))
        connection.disconnect()
    spoiled("disconnected between RDMA Writes", middle, connects=1)

    def die(connection, call):
        connection.qp.close()
        connection.broken = -4
    spoiled("the server's queue pair is gone without a word", die, connects=1)

    sizes = (0, 1, 8, 56, 148) if LONG else (0, 8, 148)
    with check(f"rejected with private data of {', '.join(map(str, sizes))} bytes", limit=180):
        def reject(size):
            def requested(child, private):
                child.reject((private_data() * 20)[:size])
                child.close()
                return True
            return requested
        proxy.requests += [reject(size) for size in sizes]
        proxy.spoil(READ, hang_up)
        fetch()
        equal(proxy.requests, [], "requests to reject")
        honest()


def useless():
    """Connections on which the server says nothing.

    A call whose time is over counts as use (C114): here that takes longer than any delay.
    """
    def requested(child, private):
        connection = Connection(proxy, child, private)
        before = proxy.established
        proxy.accept(connection)
        # Before the client has said that it is connected (by iWARP it does not), it would not be told.
        while proxy.established == before and select.select([proxy.fd], [], [], 10)[0]:
            proxy.event(CMEvent(proxy.channel))
        time.sleep(0.2)
        connection.disconnect()
        return True

    with check("disconnected as soon as accepted: the next attempt waits", limit=300):
        proxy.requests += [requested] * 2
        with traced(run) as events:
            proxy.spoil(READ, hang_up)
            fetch()
        asked = [e for e in events if e.name == "xprtrdma_op_connect"]
        begun = [e.seconds + number(e.text, "delay") / HZ for e in asked]
        apart = [later - sooner for sooner, later in zip(begun, begun[1:])]
        say(f"seconds between attempts: {', '.join(f'{s:.1f}' for s in apart)}")
        expect(len(apart) == 2 and apart[0] > 2.8 and apart[1] > 5.8, "attempts follow too soon")
        honest()


def rules():
    """Connections on which the server's first message is one that it must not send."""
    requests = int(read("/proc/sys/sunrpc/rdma_slot_table_entries"))
    spoiled("a reply to nothing more than there can be requests, and no other",
            lambda connection, call: [connection.send(header((call.xid + (1 << 16) + n) & BIG) + bytes(12))
                                      for n in range(requests + 1)],
            xids=requests + 1, bad=1, connects=1)
    begun = time.monotonic()
    # The first one breaks a connection that was of use.
    spoiled("the key of a call is invalidated by no reply, on three connections in a row",
            *[lambda connection, call: connection.send(bytes(8), call.keys[0])] * 3, connects=3, bad=None)
    with check("behind the second and the third, the next attempt waits"):
        took = time.monotonic() - begun
        say(f"all of it took {took:.1f} s")
        expect(took > 2.8 + 5.8, "attempts follow too soon")


def negotiation():
    """Private data that make no sense."""
    for name, data, largest in (
            ("none", b"", 1024), ("garbage", bytes(range(1, 57)), 1024),
            ("7 bytes", private_data()[:7], 1024), ("version 0", private_data(version=0), 1024),
            ("version 2", private_data(version=2), 1024), ("1 KiB", private_data(1, 1), 1024),
            ("1 KiB, 256 KiB", private_data(1, 256), 4096),
            ("256 KiB, 1 KiB", private_data(256, 1), 1024),
            ("256 KiB", private_data(256, 256), 4096),
            ("196 bytes", private_data() * 24 + bytes(4), 4096)):
        with check(f"private data: {name}"):
            proxy.private, proxy.receive = data, largest
            try:
                proxy.order(lambda: proxy.connection.disconnect())
                time.sleep(0.2)
                fetch()
                for size in (700, 1500, 3500):
                    write_file(f"{AT}/{FOLDER}/small", content(size))
                    equal(read_file(f"{AT}/{FOLDER}/small", direct=True), content(size), "data")
                    fetch(size)
                list_folder()
                honest()
                equal(proxy.connection.broken, None, "end of the connection")
                # Writes of 700 and of 3500 bytes go by the message if they fit.
                expect(largest // 2 < proxy.connection.largest <= largest, f"{proxy.connection.largest} bytes")
            finally:
                proxy.private, proxy.receive = b"", 4096


def callbacks():
    """Calls of the server, without a session and with one."""
    # Fewer than the client has Receives for, and more: then the connection may end.
    for count, bad, connects in ((100, 100, 0), (600, None, None)):
        spoiled(f"callbacks without a session: {count}",
                before(*(backward(0xcb000000 + n) for n in range(count))), bad=bad,
                connects=connects)


def sessions():
    """The same, with a session."""
    with check("callbacks, garbage, the same one again, and more of them than there are credits",
               limit=180), \
            through_proxy("4.1"):
        for count in (1, 16, 400):
            def flood():
                for n in range(count):
                    proxy.connection.send(backward(0xcb000000 + n))
            proxy.order(flood)
            time.sleep(1)
            fetch(700)
        # The same one again is served again, and so are more than the client has credits for.
        proxy.answers.clear()
        proxy.order(lambda: [proxy.connection.send(backward(0xcb100000)) for _ in range(24)])
        wait_for(lambda: len(proxy.answers) >= 24, 20, f"24 answers, {len(proxy.answers)} came")
        equal(proxy.answers, [0xcb100000] * 24, "answers")
        # One after the other: more than the connection has Receives, and the transport slots.
        accepted = proxy.accepted
        for n in range(1, 21):
            proxy.order(lambda: [proxy.connection.send(backward(0xcb100000)) for _ in range(16)])
            wait_for(lambda: len(proxy.answers) >= 24 + 16 * n, 20, f"answers, {len(proxy.answers)} came")
        equal(proxy.accepted, accepted, "connections")
        equal(proxy.grants, {16}, "credits of answers")
        for size in range(36, 68, 4):
            equal(proxy.order(lambda size=size: proxy.connection.send(backward(0xcb000000)[:size])), None,
                  f"sending {size} bytes")
        fetch(700)
        equal(proxy.accepted, accepted, "connections behind callbacks that are cut")
        equal(proxy.errors, [], "errors of the server's thread")


def overflow():
    """More callbacks than the client has room for, whose service does not get to run (row B5)."""
    with check("more callbacks than there is room for: the connection ends, and somebody is told"), \
            through_proxy("4.1"):
        fetch(700)
        service, = run("pgrep", "NFSv4 callback").split()
        mark, made = mark_log(run), xprt_stats(AT)["connect_count"]
        run("chrt", "--idle", "--pid", "0", service)
        busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2)]
        try:
            def again():
                # The service gets to run now and then, and the slower this machine is, the more of them it serves.
                proxy.order(lambda: [proxy.connection.send(backward(0xcb200000 + n)) for n in range(100)])
                return xprt_stats(AT)["connect_count"] > made

            wait_for(again, 60, "another connection")
        finally:
            for job in busy:
                job.kill()
                job.wait()
            run("chrt", "--other", "--pid", "0", service)
        if FLAVOURS["client"] == "rust":
            said = "\n".join(log(run, mark))
            expect(re.search(rf"server {OWN}:\d+ by device \S+: callback overflow: the server exceeds its credits", said),
                   f"the log has: {said}")
        fetch(700)
        equal(proxy.errors, [], "errors of the server's thread")


def deadly():
    """What the NFS client does not survive, by whatever transport: only asked for by name."""
    with check("a callback of NFSv4.0 by a connection of v4.1 (Documentation/upstream-findings.md)"), \
            mounted("4.0"), through_proxy("4.1"):
        # No tag, minor version 0, numbers of clients of v4.0, no operations.
        for client in range(4):
            proxy.order(lambda: proxy.connection.send(backward(0xcb000000 + client, 0, 0, client, 0)))
        time.sleep(2)
        fetch(700)


def silence():
    """A server that does not answer any more."""
    with check("a soft mount fails in time"), through_proxy(extra="soft"):
        proxy.holding = True
        try:
            begun = time.monotonic()
            try:
                fetch()
            except OSError as error:
                expect(error.errno in (errno.EIO, errno.ETIMEDOUT), f"error {error}")
            else:
                raise Failed("no error")
            expect(time.monotonic() - begun < 40 * SLOWNESS, "it took too long")
        finally:
            proxy.holding = False
    with check("umount -f ends what waits"):
        mount("3", at=AT, opts=hostile_options(), server=OWN)
        proxy.holding = True
        try:
            waiting = [pool.submit(fetch), pool.submit(fetch), pool.submit(stat_fs)]
            time.sleep(1)
            begun = time.monotonic()
            run("umount", "-f", AT, timeout=60, ok=False)
            run("umount", "-f", "-l", AT, timeout=60, ok=False)
            for call in waiting:
                error = call.exception(60 * SLOWNESS)
                expect(isinstance(error, OSError), repr(error))
            expect(time.monotonic() - begun < 40 * SLOWNESS, "it took too long")
        finally:
            proxy.holding = False
    for vers in ("3", "4.2"):
        with check(f"v{vers}: the first call of a mount is not answered: it fails in time, and leaves nothing", 240):
            accepted, proxy.holding = proxy.accepted, True
            try:
                begun = time.monotonic()
                status, text = run("mount", "-t", "nfs", "-o", hostile_options(vers, "soft,retry=0"), f"{OWN}:{EXPORT}",
                                   AT, ok=False, timeout=150)
                say(f"{time.monotonic() - begun:.0f} s: {text.strip()}")
                expect(status and proxy.accepted > accepted, f"status {status}, {proxy.accepted} connections")
                expect(time.monotonic() - begun < 60 * SLOWNESS, "it took too long")
            finally:
                proxy.holding = False
                if os.path.ismount(AT):
                    run("umount", "-f", "-l", AT, ok=False)
            wait_for(lambda: use_count() == base, 30, f"use count {base}")


def late(call):
    """An access to the first memory that a call offered, as an order to the server's thread."""
    def access():
        connection = proxy.connection
        if connection.broken is not None:
            return "was not made: the connection has ended before"
        if call.writes or call.reply:
            key, _, at = (call.writes[0] if call.writes else call.reply)[0]
            connection.write(key, at, b"too late", refused=True)
        else:
            _, key, length, at = call.reads[0]
            connection.read(key, at, length)
        return "succeeded"
    return proxy.order(access)


def killed_calls(calls, count):
    """Processes that are killed when the server has their calls, which it does not answer."""
    have = len(calls)
    for _ in range(count):
        proxy.spoil(FSSTAT, lambda connection, call: calls.append(call))
    jobs = [subprocess.Popen(["stat", "-f", AT], stdout=subprocess.DEVNULL) for _ in range(count)]
    wait_for(lambda: len(calls) == have + count, 20, f"{count} calls")
    for job in jobs:
        job.kill()
    for job in jobs:
        job.wait(20 * SLOWNESS)


def spent():
    """Calls that are given up keep their credits: the server may have no Receive for another one."""
    def answer(call):
        equal(proxy.order(lambda: proxy.honest(proxy.connection, call)), None, "sending")

    proxy.credits = 4
    try:
        with check("3 of 4 credits are with calls that were killed: one call is sent at a time"), \
                mounted("3", at=AT, opts=hostile_options(timeo=600), server=OWN):
            stat_fs()
            calls, accepted = [], proxy.accepted
            killed_calls(calls, 3)
            for _ in range(6):
                proxy.spoil(FSSTAT, lambda connection, call: calls.append(call))
            waiting = [pool.submit(stat_fs) for _ in range(6)]
            wait_for(lambda: len(calls) == 4, 20, "a call")
            time.sleep(2)
            equal(len(calls), 4, "calls that the server has")
            answer(calls[3])
            wait_for(lambda: len(calls) == 5, 20, "the next call")
            time.sleep(1)
            equal(len(calls), 5, "calls that the server has had")
            # What comes late gives the credits back.
            for call in calls[:3]:
                answer(call)
            wait_for(lambda: len(calls) == 8, 20, "as many calls as there are credits")
            for call in calls[4:8]:
                answer(call)
            wait_for(lambda: len(calls) == 9, 20, "all calls")
            answer(calls[8])
            for job in waiting:
                job.result(20 * SLOWNESS)
            equal(proxy.accepted, accepted, "connections")
        with check("all credits are with calls that were killed: there is a new connection"), \
                mounted("3", at=AT, opts=hostile_options(timeo=600), server=OWN):
            stat_fs()
            accepted = proxy.accepted
            killed_calls([], 4)
            stat_fs()
            equal(proxy.accepted, accepted + 1, "connections")
    finally:
        proxy.credits = 64


def given_up():
    """Calls that are given up while the server has them (row C34)."""
    def held(procedure):
        calls = []
        proxy.spoil(procedure, lambda connection, call: calls.append(call))
        return calls

    def ls():
        """READDIRPLUS, which the server keeps: the calls, who makes it, and the directory."""
        calls = held(READDIRPLUS)
        path = f"{FOLDER}/d{next(folders)}"
        on_server(f"cd {EXPORT} && mkdir {path} && cd {path} && touch a b c")
        job = subprocess.Popen(["ls", f"{AT}/{path}"], stdout=subprocess.DEVNULL)
        wait_for(lambda: calls, 20, "the call")
        return calls, job, path

    def killed_ls():
        """The same, of a process that is no more: the call, and the directory."""
        accepted = proxy.accepted
        calls, job, path = ls()
        job.kill()
        job.wait(20 * SLOWNESS)
        equal(proxy.accepted, accepted, "connections made before the access")
        return calls[0], f"{AT}/{path}"

    with check("ls is killed: the server cannot write the directory any more"), through_proxy():
        with traced(run) as events:
            call, path = killed_ls()
        whose = {number(t, "xid"): task(t) for t in of(events, "xprtrdma_marshal")}[call.xid]
        shown(events, {"xprtrdma_mrs_zap": [f"^{whose}$"], "xprtrdma_wc_li_wake": [""]})
        equal(sorted(int(t.split(":0x")[1][:8], 16) for t in of(events, "xprtrdma_mr_localinv")
                     if task(t) == whose), sorted(call.keys), "keys that were invalidated")
        equal(fenced([e for e in events if whose in e.text or e.name == "xprtrdma_wc_li_wake"],
                     "xprtrdma_wc_li_wake"), {}, "regions that were not")
        result = late(call)
        denied(result)
        equal(sorted(os.listdir(path)), ["a", "b", "c"], "names")
        honest()
    with check("ls is killed: its reply comes late with an invalidation, and does no harm"), through_proxy():
        before = xprt_stats(AT)
        call, path = killed_ls()
        inv = xprt_stats(AT)["local_inv_needed"] - before["local_inv_needed"]
        expect(inv >= len(call.keys), f"{inv} of {len(call.keys)} regions are counted as invalidated")
        result = proxy.order(lambda: proxy.connection.send(header(call.xid) + bytes(12), call.keys[0]))
        equal(result, None, "sending")
        equal(sorted(os.listdir(path)), ["a", "b", "c"], "names")
        after = xprt_stats(AT)
        for field, more in (("bad_xids", 1), ("bad_reply_count", 0), ("connect_count", 0)):
            equal(after[field] - before[field], more, field)
        honest()
    with shim(run), through_proxy(), check("ls is killed: its reply comes with an invalidation when its memory "
                                           "is about to be invalidated, and does no harm"):
        fetch()
        before = xprt_stats(AT)
        calls, job, path = ls()
        try:
            shim_set(run, "hold", 1)
            job.kill()
            wait_for(lambda: xprt_stats(AT)["local_inv_needed"] > before["local_inv_needed"], 20,
                     "its memory is to be invalidated")
            time.sleep(0.5)
            expect(job.poll() is None, "its memory is invalid already")
            call, = calls
            proxy.order(lambda: proxy.connection.send(header(call.xid) + bytes(12), call.keys[0]))
            wait_for(lambda: xprt_stats(AT)["bad_xids"] > before["bad_xids"], 20, "the reply is seen")
        finally:
            job.kill()
            shim_set(run, "hold", 0)
        job.wait(20 * SLOWNESS)
        equal(sorted(os.listdir(f"{AT}/{path}")), ["a", "b", "c"], "names")
        after = xprt_stats(AT)
        for field, more in (("bad_xids", 1), ("bad_reply_count", 0), ("connect_count", 0)):
            equal(after[field] - before[field], more, field)
        honest()
    for way, name, procedure, action in (("write", "READ", READ, fetch), ("read", "WRITE", WRITE, store)):
        with check(f"umount -f during a {name}: the server cannot {way} its memory any more"), \
                through_proxy():
            # It ends calls, and no more than that, since the mount is in use.
            folder = os.open(AT, os.O_RDONLY)
            try:
                calls, accepted = held(procedure), proxy.accepted
                waiting = pool.submit(action)
                wait_for(lambda: calls, 20, "the call")
                run("umount", "-f", AT, timeout=60, ok=False)
                error = waiting.exception(60 * SLOWNESS)
                # NFS writes again what it could not write.
                expect(isinstance(error, OSError) or error is None and procedure == WRITE, repr(error))
                equal(proxy.accepted, accepted, "connections made before the access")
                result = late(calls[0])
                denied(result)
                honest()
            finally:
                os.close(folder)
    with check("umount -f during a READ of odd length: its reply invalidates the key of the padding, and there is "
               "another connection"), through_proxy():
        folder = os.open(AT, os.O_RDONLY)
        try:
            calls, before = held(READ), xprt_stats(AT)
            waiting = pool.submit(fetch, SIZE + 1)
            wait_for(lambda: calls, 20, "the call")
            run("umount", "-f", AT, timeout=60, ok=False)
            error = waiting.exception(60 * SLOWNESS)
            expect(isinstance(error, OSError), repr(error))
            key = pad_key(None, calls[0])
            result = proxy.order(lambda: proxy.connection.send(header(calls[0].xid) + bytes(12), key))
            equal(result, None, "sending")
            fetch(SIZE + 1)
            after = xprt_stats(AT)
            for field, more in (("bad_xids", 1), ("bad_reply_count", 0), ("connect_count", 1)):
                equal(after[field] - before[field], more, field)
            honest()
        finally:
            os.close(folder)


def unposted():
    """Work requests that cannot be posted: the event that tells of it, and another connection."""
    def lost(procedure, action, event, text):
        before, calls = xprt_stats(AT)["connect_count"], []

        def spoil(connection, call):
            reply = connection.reply(call)
            calls.append(call.xid)
            fail(run, "post_send")
            connection.send(reply.encode())
        with traced(run) as events:
            proxy.spoil(procedure, spoil)
            action()
            honest()
        shown(events, {event: [text]})
        whose = {task(t) for t in of(events, "xprtrdma_marshal") if number(t, "xid") in calls}
        equal(xprt_stats(AT)["connect_count"] - before, 1, "connections made")
        return whose == {task(*of(events, event))}

    with shim(run), through_proxy():
        fetch()
        with check("the invalidation of a call's memory cannot be posted"):
            expect(lost(READ, fetch, "xprtrdma_post_linv_err", " status=-107$"), "it is of another call")
        with check("a call cannot be posted"):
            # The one behind the call that was answered.
            expect(not lost(FSSTAT, stat_fs, "xprtrdma_post_send_err", r" cq\.id=[1-9]\d* rc=-107$"),
                   "it is of a call that was posted")


def early():
    """Replies that are there before the task knows that its call was sent: what they say is not lost."""
    def tardy(action):
        def act():
            shim_set(run, "slow", 1)
            try:
                action()
            finally:
                equal(read(f"{PARAMETERS}/slow").strip(), "0", "tasks still to be held up")
        return act

    with shim(run), through_proxy():
        fetch()
        spoiled("a reply before its call is known to be sent", lambda *a: proxy.honest(*a), procedure=FSSTAT,
                action=tardy(stat_fs))
        spoiled("a reply that makes no sense, before its call is known to be sent", changes(proc=99),
                procedure=FSSTAT, action=tardy(stat_fs), fails=1, bad=1)


for name in (SIZE, SIZE + 1, 700, 1500, 3500):
    with through_proxy():
        write_file(f"{AT}/{FOLDER}/{name}", content(name))
with through_proxy():
    write_file(f"{AT}/{FOLDER}/crafted", words(4, 1, 4) + content(SIZE)[12:])
# Why, among others, connections end in a group.
REASONS = {replies: "a call had no reply in time", keys: "with a reply it invalidates"}
# Where a timeout would hide that the client does not notice something, there is none.
for group, timeo in ((replies, 50), (keys, 600), (endings, 50), (useless, 100), (rules, 600),
                     (negotiation, 50), (callbacks, 50), (credits, 600)):
    if sys.argv[1:] and group.__name__ not in sys.argv[1:]:
        continue
    with check(f"mounted: {group.__name__}"):
        mount("3", at=AT, opts=hostile_options(timeo=timeo), server=OWN)
    group()
    if group in REASONS and FLAVOURS["client"] == "rust":
        with check(f"{group.__name__}: the log says who, by which device, and why"):
            wanted = f"server {OWN}.* by device {RDMA}0.*: .*{REASONS[group]}"
            expect(any(re.search(wanted, line) for line in log(run)), f"no {wanted!r} in {log(run)}")
    with check(f"unmounted: {group.__name__}"):
        umount(AT)
        wait_for(lambda: use_count() == base, 30, f"use count {base}")
for group in (sessions, overflow, silence, spent, given_up, unposted, early, deadly):
    if group.__name__ in sys.argv[1:] or not sys.argv[1:] and group != deadly:
        group()

with check("nothing is left over"):
    wait_for(lambda: use_count() == base, 60, f"use count {base}, it is {use_count()}")
    proxy.end()
    equal(proxy.errors, [], "errors of the server's thread")
    wait_for(lambda: left() == objects, 30, f"{objects}, instead {left()}")
on_server(f"rm -rf {EXPORT}/{FOLDER}")
done()
