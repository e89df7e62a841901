# SPDX-License-Identifier: GPL-2.0
"""Verbs and allocations that fail: what cannot be served is refused or tried again, and nothing is lost.

What fails is decided by tests/shim, in the guest whose side is under test.
"""

import collections
import concurrent.futures
import errno
import random
import struct

from events import *
from lib import *
from load import Load
from peer import *
from shim import *

SERVER_OURS = os.environ["SERVER_FLAVOUR"] == "rust"
CLIENT_OURS = os.environ["CLIENT"] == "rust"
# How events name the client.
WHO = r"addr=10\.0\.0\.\d:\d+ "


def refused():
    """A connection that is not accepted, or that ends before it was of use."""
    before = server_connections()
    try:
        peer = Peer()
    except PyverbsError:
        return True
    try:
        good(peer)
    except Gone:
        return True
    except Quiet:
        is_closed(before)
        return True
    finally:
        peer.close()
    return False


def serves():
    with connection() as peer:
        good(peer)


def unanswered(peer):
    """The connection has ended, and nothing came before that."""
    try:
        data = peer.recv(0.5)
    except (Gone, Quiet):
        return
    raise Failed(f"an answer: {data.hex()}")


def last_send(peer, message):
    """Send what ends the connection: the queue pair may be gone before its device has acknowledged that."""
    with contextlib.suppress(Gone):
        peer.send(message)


# --- the server


def accepting():
    for verb, skip, event in (("alloc_pd", 0, "svcrdma_pd_err"), ("create_cq", 0, None),
                              ("create_cq", 1, None), ("create_qp", 0, None),
                              ("create_qp", -1, "svcrdma_qp_err"), ("post_recv", 0, "svcrdma_rq_post_err"),
                              ("modify_qp", 1, "svcrdma_accept_err")):
        # Of queue pairs all sizes are tried.
        times = 1 if skip >= 0 else 20
        with check(f"a connection that cannot be accepted: {verb} fails, {skip}"), \
                nothing_left(on_server, "what is in use"), \
                shows(on_server, {event: [WHO + "status=-12"] * 3} if event else {}):
            for _ in range(3):
                fail(on_server, verb, max(skip, 0), times)
                ended = refused()
                seen, failed = counts(on_server, verb)
                expect(failed, f"{verb}: {seen} calls, none failed")
                fail(on_server, verb, 0, 0)
                # A smaller queue pair may do.
                expect(ended or (verb, skip) == ("create_qp", 0), "it was of use")
            serves()
    with check("a client that answers no Reads: refused"), nothing_left(on_server, "what is in use"), \
            shows(on_server, {"svcrdma_initdepth_err": [WHO + "status=-22"]}):
        shell(on_server, "dmesg -C")
        try:
            peer = Peer(resources=0)
        except PyverbsError:
            pass
        else:
            peer.close()
            raise Failed("it was accepted")
        wanted = rf"a connection of client [0-9.]+:\d+ by device {RDMA}0 is not accepted: E"
        expect(any(re.search(wanted, l) for l in log(on_server)), f"no {wanted!r} in {log(on_server)}")
        serves()


def tells_why(why, mark):
    wanted = rf"connection of client [0-9.]+:\d+ by device {RDMA}0 ends, as {why}"
    expect(any(re.search(wanted, l) for l in log(on_server, mark)), f"no {wanted!r} in {log(on_server, mark)}")


def posting():
    message = null(20, 99)
    not_posted = r"cq\.id=[1-9]\d* cid=\d+ sc_sq_avail=\d+/\d+ status=-12$"
    for name, verb in (("RDMA Reads", "post_send"), ("part of the RDMA Reads", "post_part")):
        with check(f"{name} cannot be posted: no reply, and the connection ends"), \
                nothing_left(on_server, "what is in use"), \
                shows(on_server, {"svcrdma_sq_post_err": [not_posted]}):
            before, peer = server_connections(), Peer()
            mark = mark_log(on_server)
            good(peer)
            rkey, addr = peer.memory(message)
            fail(on_server, verb)
            last_send(peer, fixed(20, NOMSG) + lists([(0, rkey, 13, addr), (0, rkey, 27, addr + 13)]))
            is_closed(before)
            unanswered(peer)
            equal(counts(on_server, verb)[1], 1, "calls that failed")
            tells_why("a call cannot be received: ENOMEM", mark)
            peer.close()
            serves()
    for name, verb in (("a reply", "post_send"), ("part of a reply", "post_part")):
        with check(f"{name} cannot be posted: the connection ends"), \
                nothing_left(on_server, "what is in use"), \
                shows(on_server, {"svcrdma_send_err": [WHO + "xid=0x0000001f status=-12"],
                                  "svcrdma_sq_post_err": [not_posted]}, "sunrpc/svc_send") as events:
            before, peer = server_connections(), Peer()
            mark = mark_log(on_server)
            good(peer)
            space = peer.space(64)
            key, at = space.rkey, space.buf
            # With the first kind of header a Reply chunk is needed: a chain.
            fail(on_server, verb)
            last_send(peer, fixed(31) + lists((), [[(key, 4, at)] * 30] * 2, [(key, 40, at)]) + null(31))
            is_closed(before)
            equal(counts(on_server, verb)[1], 1, "calls that failed")
            tells_why("a reply cannot be sent: ENOMEM", mark)
            peer.close()
            serves()
        equal([number(t, "status") for t in of(events, "svc_send") if number(t, "xid") == 31], [-107],
              "status of the reply")
    with check("a client that takes no replies, and its queue pair fails: all that is posted is flushed"), \
            nothing_left(on_server, "what is in use"):
        with traced(on_server) as events:
            before, peer = server_connections(), Peer(receives=0, retry=7, rnr_retry=7)
            known(peer)
            rkey, addr = peer.memory(message)
            space = peer.space(64)
            key, at = space.rkey, space.buf
            # A Send that waits for a Receive, and behind it a Write with a Send, and a Read.
            peer.send(fixed(60) + lists() + null(60))
            peer.send(fixed(61) + lists((), [[(key, 4, at)] * 30] * 2, [(key, 40, at)]) + null(61))
            reads = "cat /proc/sys/sunrpc/svc_rdma/rdma_stat_read"
            posted = on_server(reads)
            peer.send(fixed(62, NOMSG) + lists([(0, rkey, 40, addr)]))
            wait_for(lambda: on_server(reads) != posted, 30, "a Read is about to be posted")
            time.sleep(SLOWNESS)
            shell(on_server, f"echo 1 >{PARAMETERS}/error")
            is_closed(before)
            peer.close()
        flushed = r"status=WR_FLUSH_ERR \(5/"
        shown(events, {"svcrdma_wc_send_flush": [flushed] * 2, "svcrdma_wc_write_flush": [flushed],
                       "svcrdma_wc_read_flush": [flushed], "svcrdma_wc_send": ["cid="], "svcrdma_wc_read": []})
        for posted, *ended in (("svcrdma_post_send", "svcrdma_wc_send", "svcrdma_wc_send_flush"),
                               ("svcrdma_post_reply_chunk", "svcrdma_wc_write_flush"),
                               ("svcrdma_post_read_chunk", "svcrdma_wc_read_flush"),
                               ("svcrdma_post_recv", "svcrdma_wc_recv", "svcrdma_wc_recv_flush")):
            equal(cids(of(events, *ended)), cids(of(events, posted)), f"{ended} of what {posted} names")
        serves()
    with check("Receives cannot be posted again: the connection ends"), \
            nothing_left(on_server, "what is in use"), \
            shows(on_server, {"svcrdma_rq_post_err": [WHO + "status=-12"]}):
        before, peer = server_connections(), Peer()
        fail(on_server, "post_recv")
        try:
            for xid in range(40):
                good(peer, xid)
            raise Failed("it goes on")
        except (Gone, Quiet):
            is_closed(before)
        peer.close()
        serves()
    with check("the device reports an error of the queue pair: the connection ends"), \
            nothing_left(on_server, "what is in use"), \
            shows(on_server, {"svcrdma_qp_error": [rf"{WHO}dev={RDMA}0 event={name}$" for name in
                                                   (r"SQ_DRAINED \(5\)", r"QP_FATAL \(1\)")]}):
        before, peer = server_connections(), Peer()
        good(peer)
        # IB_EVENT_SQ_DRAINED is none, IB_EVENT_QP_FATAL is one.
        shell(on_server, f"echo 5 >{PARAMETERS}/event")
        good(peer)
        shell(on_server, f"echo 1 >{PARAMETERS}/event")
        is_closed(before)
        peer.close()
        serves()


def small_queue():
    with check("more work requests than the send queue has: an error, and the connection stays"), \
            nothing_left(on_server, "what is in use"):
        shell(on_server, f"echo 64 >{PARAMETERS}/max_qp_wr")
        try:
            with connection() as peer:
                known(peer)
                message = null(40, 99)
                rkey, addr = peer.memory(message + bytes(200))
                for count, kind in ((20, MSG), (100, ERROR), (20, MSG)):
                    rest = len(message) + 60 - count
                    reads = [(0, rkey, 1, addr + n) for n in range(count - 1)]
                    reads.append((0, rkey, rest, addr + count - 1))
                    peer.send(fixed(40, NOMSG) + lists(reads))
                    equal(struct.unpack_from(">4I", peer.recv())[3], kind, f"answer to {count} segments")
                # None of it is complete for a while.
                starved = "cat /proc/sys/sunrpc/svc_rdma/rdma_stat_sq_starve"
                before = int(on_server(starved))
                with traced(on_server) as events:
                    shim_set(on_server, "hold", 1)
                    reads = [(0, rkey, 1, addr + n) for n in range(19)] + [(0, rkey, 21, addr + 19)]
                    for xid in range(41, 47):
                        peer.send(fixed(xid, NOMSG) + lists(reads))
                    time.sleep(2 * SLOWNESS)
                    shim_set(on_server, "hold", 0)
                    got = sorted(struct.unpack_from(">I", peer.recv())[0] for _ in range(6))
                equal(got, list(range(41, 47)), "calls that were answered")
            full, retry = ([(cids([t]), *map(int, re.search(r"sc_sq_avail=(\d+)/(\d+)", t).groups()))
                            for t in of(events, name)] for name in ("svcrdma_sq_full", "svcrdma_sq_retry"))
            say(f"waited: {full}, went on: {retry}")
            equal(int(on_server(starved)) - before, len(full), "rdma_stat_sq_starve grew by")
            expect(full and full[0][1] < 20, "svcrdma_sq_full: there was room")
            expect(all(avail <= depth <= 64 for _, avail, depth in full + retry), "room, depth")
            equal([cid for cid, *_ in retry], [cid for cid, *_ in full], "what went on, of what waited")
        finally:
            shell(on_server, f"echo 16384 >{PARAMETERS}/max_qp_wr")


def memory():
    with check("allocations fail while connections are accepted", 600), \
            nothing_left(on_server, "what is in use"):
        fail(on_server, "memory", 1 << 30, 0)
        serves()
        total, _ = counts(on_server, "memory")
        expect(total > 100, f"{total} allocations")
        places = sorted({*range(6), *random.sample(range(6, total), 8), total - 1})
        bad = 0
        for place in places:
            fail(on_server, "memory", place)
            bad += refused()
            fail(on_server, "memory", 0, 0)
        say(f"of {total} allocations {places} failed, which ended {bad} connections")
        expect(bad > len(places) // 2, "most of them were of use")
        serves()
    with check("allocations fail while calls are served: an answer, an error, or the end", 600), \
            nothing_left(on_server, "what is in use"):
        message = null(21, 99)
        outcomes = collections.Counter()
        missing = []
        for place in range(16):
            before = server_connections()
            with traced(on_server, only=["svcrdma_rwctx_empty"]) as events, connection() as peer:
                rkey, addr = peer.memory(message)
                space = peer.space(64)
                chunk = [(space.rkey, 4, space.buf)]
                fail(on_server, "memory", place)
                try:
                    peer.send(fixed(21, NOMSG) + lists([(0, rkey, 40, addr)], [chunk] * 3, chunk * 9))
                    data = peer.recv()
                    kind = struct.unpack_from(">4I", data)[3]
                    expect(kind in (MSG, ERROR), f"answer of kind {kind}")
                    outcomes[kind] += 1
                except (Gone, Quiet):
                    is_closed(before)
                    outcomes["end"] += 1
                if not counts(on_server, "memory")[1]:
                    break
                fail(on_server, "memory", 0, 0)
            missing += of(events, "svcrdma_rwctx_empty")
        fail(on_server, "memory", 0, 0)
        say(dict(outcomes))
        say(missing)
        expect(missing and all(re.fullmatch(r"cq.id=[1-9]\d* num_sges=0", t) for t in missing),
               "svcrdma_rwctx_empty")
        expect(place and outcomes["end"] + outcomes[ERROR], "no allocation has failed")
        serves()


# --- the client


def first():
    """What a connection inherits from the one before it only the first one has to make."""
    for verb in ("alloc_pd", "alloc_mr"):
        with check(f"the first connection cannot be made at first: {verb} fails"), \
                nothing_left(run, "what is in use"):
            fail(run, verb)
            with mounted("3", "noac") as at:
                os.statvfs(at)
                equal(counts(run, verb)[1], 1, "calls that failed")
    with check("no region, and none to be had for a while: calls wait", 200), server_folder("faults"), \
            nothing_left(run, "what is in use"):
        # One is for padding, which leaves two. More are made when these run short.
        fail(run, "alloc_mr", 3, 40)
        names = "xprtrdma_frwr_alloc", "xprtrdma_nomrs_err", "xprtrdma_marshal_failed"
        with traced(run, only=names) as events, mounted("3", "noac") as at, contextlib.ExitStack() as stack:
            jobs = [stack.enter_context(Load(f"{at}/faults", f"load{n}")) for n in range(6)]
            for job in jobs:
                job.goes_on(90)
            asked, refused = counts(run, "alloc_mr")
            stats = xprt_stats(at)
            say(f"of {asked} regions {refused} were refused; {stats['failed_marshal_count']} calls had to wait")
            equal(refused, 40, "regions that were refused")
            expect(stats["failed_marshal_count"] > 6, "no call had to wait")
            equal(stats["connect_count"], 1, "connections")
        waited = of(events, "xprtrdma_nomrs_err")
        shown(events, {"xprtrdma_frwr_alloc": [r"mr\.id=0: rc=-12"] * 40,
                       "xprtrdma_nomrs_err": [rf"peer=\[{SERVER}\]:{PORT}"] * len(waited)})
        failed = [task(t) for t in of(events, "xprtrdma_marshal_failed") if "ret=-11" in t]
        expect(len(waited) > 6 and not collections.Counter(map(task, waited)) - collections.Counter(failed),
               f"{len(waited)} calls had no region, of {len(failed)} that were put off")


def connecting(at):
    for verb, skip in (("create_cq", 0), ("create_cq", 1), ("create_qp", 0), ("post_recv", 0),
                       ("modify_qp", 0), ("modify_qp", 1)):
        with check(f"a connection that cannot be made at first: {verb} fails, {skip}"), \
                nothing_left(run, "what is in use", regions=False):
            before = xprt_stats(at)["connect_count"]
            fail(run, verb, skip)
            lose()
            os.statvfs(at)
            equal([counts(run, v)[1] for v in ("post_send", verb)], [1, 1], "calls that failed")
            equal(xprt_stats(at)["connect_count"] - before, 1, "connections that were made")
    with check("a device that starts anew has no completion queue for a moment: ENOLINK, and work goes on"):
        # As mlx5 says it. Whoever waits for a connection must not see that.
        shim_set(run, "with", 67)
        fail(run, "create_cq", 0, 2)
        shell(run, "dmesg -C")
        lose()
        os.statvfs(at)
        equal(counts(run, "create_cq")[1], 2, "calls that failed")
        wanted = rf"cannot connect to server {SERVER}:{PORT} by device {RDMA}0: ENOLINK"
        expect(any(re.search(wanted, l) for l in log(run)), f"no {wanted!r} in {log(run)}")
        shim_set(run, "with", 12)
    with check("attempts are put off longer and longer, until there was traffic"):
        with traced(run) as events:
            fail(run, "create_qp", 0, 3)
            lose()
            os.statvfs(at)
            equal(counts(run, "create_qp")[1], 3, "attempts that failed")
            lose()
            os.statvfs(at)
        put_off = [number(t, "delay") for t in of(events, "xprtrdma_op_connect")]
        say(f"put off by {put_off} jiffies")
        first, *failed, last = put_off
        equal(len(failed), 3, "attempts after failed ones")
        expect(first < failed[0] < failed[1] < failed[2] and last < failed[0], "others were put off")


def marshalling(at):
    path = f"{at}/faults/m"
    data = random_bytes(1 << 16)
    write_file(path, data, direct=True)
    with check("memory that cannot be registered: an error of that call, and nothing is lost"), \
            shows(run, {"xprtrdma_frwr_maperr": [r"mr\.id=[1-9]\d* DMA addr=0x[0-9a-f]{4,} "
                                                 r"\(FROM_DEVICE\) nents=0 of 16"] * 20,
                        "xprtrdma_marshal_failed": ["xid=0x[0-9a-f]{8} ret=-5"] * 20}):
        before = xprt_stats(at)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        room = buffer(bytes(1 << 16))
        try:
            for _ in range(20):
                fail(run, "map_mr_sg")
                try:
                    os.preadv(fd, [room], 0)
                except OSError as error:
                    equal(error.errno, 5, "error")
                else:
                    raise Failed("no error")
            after = xprt_stats(at)
            equal(after["failed_marshal_count"] - before["failed_marshal_count"], 20, "failed_marshal_count")
            for name in ("mrs_allocated", "connect_count", "local_inv_needed"):
                equal(after[name], before[name], name)
            equal(os.preadv(fd, [room], 0), 1 << 16, "bytes read afterwards")
            expect(room == data, "what is read differs")
        finally:
            os.close(fd)


def losing(at):
    for verb in ("post_send", "post_part", "post_recv"):
        failing = {"xprtrdma_post_recvs_err": [rf"peer=\[{SERVER}\]:{PORT} cq\.id=[1-9]\d* rc=-107"] * 4}
        with check(f"{verb} fails now and then: calls are sent again, data are right", 240), \
                shows(run, failing if verb == "post_recv" else {}), \
                nothing_left(run, "what is in use", regions=False), Load(f"{at}/faults") as load:
            load.goes_on(60)
            for skip in (0, 3, 10, 1):
                before = xprt_stats(at)["connect_count"]
                fail(run, verb, skip)
                wait_for(lambda: counts(run, verb)[1], 30, f"{verb} has failed")
                load.goes_on(60)
                equal(xprt_stats(at)["connect_count"] - before, 1, "connections that were made")
    with check("the queue pair fails while nothing is under way: it is noticed, without a call"), \
            nothing_left(run, "what is in use", regions=False):
        os.statvfs(at)
        before = xprt_stats(at)["connect_count"]
        # The checks before have lost many, and ten messages of a kind in 30 s is all.
        time.sleep(31)
        shell(run, "dmesg -C")
        shell(run, f"echo 1 >{PARAMETERS}/error")
        wait_for(lambda: any("is lost" in l for l in log(run)), 10, "a message")
        os.statvfs(at)
        equal(xprt_stats(at)["connect_count"] - before, 1, "connections that were made")


def statting(at, count):
    """Calls without chunks, by four threads; how many are over is in the list that is returned."""
    over = []

    def work():
        for _ in range(count // 4):
            os.statvfs(at)
            over.append(None)
    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    return over


def sending(at):
    with check("no Send completes for a while: calls wait for room, and go on"):
        os.statvfs(at)
        before = xprt_stats(at)
        shim_set(run, "hold", 1)
        # All are complete with the last one that says so.
        over = statting(at, 1000)
        wait_for(lambda: xprt_stats(at)["empty_sendctx_q"] > before["empty_sendctx_q"], 30,
                 f"no room to send after {len(over)} calls")
        time.sleep(1)
        count = len(over)
        time.sleep(1)
        say(f"{count} calls were made before there was no room")
        equal(len(over), count, "calls that were made without room")
        expect(100 < count < 400, "room for others")
        shim_set(run, "hold", 0)
        wait_for(lambda: len(over) == 1000, 60, "all calls are made")
        after = xprt_stats(at)
        equal(after["connect_count"], before["connect_count"], "connections made")
        expect(after["empty_sendctx_q"] - before["empty_sendctx_q"] < 20, "room came back in bits")
    with check("Sends complete just before a call waits for them: it goes on"):
        for turn in range(3):
            shim_set(run, "hold", 1)
            shim_set(run, "late", 1)
            over = statting(at, 400)
            wait_for(lambda: len(over) == 400, 30, f"calls, {len(over)} of 400 were made")
            equal(shell(run, f"cat {PARAMETERS}/late").strip(), "0", "calls that would have waited too late")


def pages(at):
    with check("no pages for a reply, for a moment: the call waits, and is sent again"):
        hits, fits = 0, 0
        for turn in range(12):
            path = f"{at}/faults/acl{turn}"
            write_file(path, b"x")
            run("setfacl", "-m", ",".join(f"u:{1000 + n}:r" for n in range(300)), path)
            with traced(run, "sunrpc/xprt_transmit") as events:
                # The first allocations may be those of the call's buffers.
                fail(run, "memory", turn % 4)
                expect("user:1299:r--" in run("getfacl", "-n", path), "the ACL is another one")
                _, failed = counts(run, "memory")
                fail(run, "memory", 0, 0)
            sent = [(e.seconds, number(e.text, "xid"), number(e.text, "status")) for e in events
                    if e.name == "xprt_transmit"]
            for seconds, xid, status in sent:
                if status == -105:
                    hits += 1
                    again = [s for s, x, good in sent if x == xid and good == 0]
                    say(f"sent {again[0] - seconds:.2f} s later")
                    # HZ / 4
                    fits += 0.2 < again[0] - seconds < 1 * SLOWNESS
        expect(hits, "no page was missing")
        equal(fits, hits, "calls that were sent again in time")


def mounting():
    with check("allocations fail while a transport is made: there is no mount, and nothing is left", 600):
        fail(run, "memory", 1 << 30, 0)
        with mounted("3"):
            pass
        total, _ = counts(run, "memory")
        base = in_use(run)
        refusals = 0
        for place in sorted({*range(4), *random.sample(range(4, total // 2), 8)}):
            fail(run, "memory", place)
            status, text = run("mount", "-t", "nfs", "-o", options("3") + ",retry=0", f"{SERVER}:{EXPORT}",
                               "/mnt/a", ok=False)
            equal(counts(run, "memory")[1], 1, f"allocations that failed, {place}")
            if status:
                expect("Cannot allocate memory" in text, text)
                refusals += 1
            else:
                os.listdir("/mnt/a")
                umount()
            wait_for(lambda: in_use(run) == base, 30, f"{place}: {base}, it is {in_use(run)}")
        say(f"of {total} allocations one failed; {refusals} of 12 mounts failed")
        expect(refusals > 2, "most mounts were made")


def client_memory(at):
    with check("allocations fail while connections are made", 600), \
            nothing_left(run, "what is in use", regions=False):
        # What the first one allocates is kept for those that follow.
        for _ in range(2):
            fail(run, "memory", 1 << 30, 0)
            lose()
            os.statvfs(at)
        total, _ = counts(run, "memory")
        expect(total > 100, f"{total} allocations")
        # Not every connection needs the same number.
        places = sorted({0, 1, 2, 3, *random.sample(range(4, total * 9 // 10), 7)})
        say(f"of about {total} allocations {places} fail")
        for place in places:
            before = xprt_stats(at)["connect_count"]
            fail(run, "memory", place)
            lose()
            os.statvfs(at)
            equal(counts(run, "memory")[1], 1, f"allocations that failed, {place}")
            expect(xprt_stats(at)["connect_count"] > before, "there is no new connection")


def unaligned(name, data, at_page):
    """Parts of pages are elsewhere in other pages, and do not adjoin what is next to them."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
    try:
        room = memoryview(mmap.mmap(-1, at_page + len(data) + 4096))[at_page:at_page + len(data)]
        room[:] = data
        equal(os.pwritev(fd, [room], 0), len(data), "bytes written")
        room[:] = bytes(len(data))
        equal(os.preadv(fd, [room], 0), len(data), "bytes read")
        expect(room == data, f"what is read of {len(data)} bytes differs")
    finally:
        os.close(fd)


def secured():
    """Calls and replies that are transferred as a whole have more pieces: head and tail, too."""
    on_server("kerberos-up")
    run("kerberos-up")
    for side in (run, on_server):
        # For lib.mount, which was denied access once.
        shell(side, f"cd {TRACING}; echo 1024 >buffer_size_kb; echo 1 >events/rpcgss/enable; "
                    "for name in expired make_negative no_listener upcall; do "
                    "echo 1 >events/sunrpc/cache_entry_$name/enable; done; echo 1 >tracing_on")
    on_server(f"echo '{EXPORT} *(rw,async,no_root_squash,no_subtree_check,insecure,fsid=1,sec=sys:krb5i:krb5p)' "
              ">/etc/exports && exportfs -ra")
    try:
        for flavour in ("krb5i", "krb5p"):
            with check(f"{flavour}: data are right when DMA is by other memory", 240), server_folder("faults"), \
                    mounted("4.2", f"sec={flavour}", server="server") as at:
                for n in range(10):
                    for size, at_page in ((20000, 512), (70000, 700), (6000, 3072), (1 << 20, 1024)):
                        unaligned(f"{at}/faults/{flavour}", random_bytes(size, seed=n), at_page)
                equal(xprt_stats(at)["connect_count"], 1, "connections")
    finally:
        on_server(f"echo '{EXPORT} *(rw,async,no_root_squash,no_subtree_check,insecure,fsid=1)' >/etc/exports && "
                  "exportfs -ra; kerberos-down")
        run("kerberos-down")
        for side in (run, on_server):
            shell(side, f"cd {TRACING}; echo 0 >events/enable; echo >trace; echo 1 >buffer_size_kb")


def bounced(at, vers):
    """One that copies through memory of its own sees what is written after it was told to look."""
    with check("data are right when DMA is by other memory"):
        data = random_bytes(3 << 20)
        for name in range(3):
            write_file(f"{at}/faults/b{name}", data, direct=name != 1)
            expect(read_file(f"{at}/faults/b{name}", direct=name != 1) == data, "what is read differs")
        for size, at_page in ((5000, 0), (70000, 0), (8192, 512), (1 << 20, 2048), (6000, 3072)):
            unaligned(f"{at}/faults/bent", data[:size], at_page)
        for n in range(300):
            write_file(f"{at}/faults/{'n' * 100}{n}", b"x" * n)
        equal(len([n for n in os.listdir(f"{at}/faults") if n.startswith("nnn")]), 300, "names")
        for n in range(0, 300, 7):
            equal(read_file(f"{at}/faults/{'n' * 100}{n}"), b"x" * n, "content")
        os.symlink("y" * 3900, f"{at}/faults/link")
        equal(os.readlink(f"{at}/faults/link"), "y" * 3900, "link")
    if run in sides():
        with check("DMA by other memory: buffers that a lost connection leaves to the next one are mapped"):
            before = xprt_stats(at)["connect_count"]
            lose()
            for name in range(3):
                write_file(f"{at}/faults/b{name}", data, direct=name != 1)
                expect(read_file(f"{at}/faults/b{name}", direct=name != 1) == data, "what is read differs")
            equal(xprt_stats(at)["connect_count"], before + 1, "connections")
        with check("no room to map a call's memory, for a moment: the call is sent again, there is no error"), \
                shows(run, {"xprtrdma_frwr_sgerr": [r"mr\.id=[1-9]\d* DMA addr=0x[0-9a-f]+ \((TO|FROM)_DEVICE\) "
                                                    r"sg_nents=[1-9]\d*$"] * 3,
                            "xprtrdma_marshal_failed": ["xid=0x[0-9a-f]{8} ret=-105"] * 3}):
            before = xprt_stats(at)
            fail(run, "map", 0, 3)
            write_file(f"{at}/faults/mapped", data, direct=True)
            equal(counts(run, "map")[1], 3, "mappings that failed")
            expect(read_file(f"{at}/faults/mapped", direct=True) == data, "what is read differs")
            equal(xprt_stats(at)["connect_count"], before["connect_count"], "connections")
        with check("no room to map calls' memory, more often than there are calls: none of them fails"):
            # Each task that gets the transport tries the first call in the queue.
            small = data[:65536]
            write_file(f"{at}/faults/small", small, direct=True)
            fail(run, "map", 0, 100)
            with concurrent.futures.ThreadPoolExecutor(64) as pool:
                for job in [pool.submit(read_file, f"{at}/faults/small", direct=True) for _ in range(64)]:
                    expect(job.result() == small, "what is read differs")
            equal(counts(run, "map")[1], 100, "mappings that failed")
        with check("memory that cannot be registered: it is that call that fails, whoever sends it"):
            errors = []
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                for _ in range(10):
                    # At first there is no room. When it is sent again somebody else has the transport.
                    fail(run, "map", 0, 1)
                    fail(run, "map_mr_sg", 0, 1)
                    job = pool.submit(read_file, f"{at}/faults/small", direct=True)
                    while not job.done():
                        os.statvfs(at)
                    errors.append(getattr(job.exception(), "errno", None))
            # The slot of a session in which a call fails like this is one ahead of the server (row C58): when NFS
            # has found that out, it sends the call once more, now and then.
            expect(set(errors) <= {errno.EIO, *([] if vers == "3" else [None])}, f"errors {errors}")
            expect(errno.EIO in errors, "there was no error")
        with check("no room to map a call's memory, for long: it waits, and somebody is told"):
            mark = mark_log(run)
            fail(run, "map", 0, -1)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                job = pool.submit(write_file, f"{at}/faults/small", small[::-1], direct=True)
                try:
                    time.sleep(12)
                    expect(not job.done(), "it has ended")
                    expect(any("no room to map the memory of a call, which waits" in line
                               for line in log(run, mark)), "nobody was told")
                finally:
                    fail(run, "map", 0, 0)
                job.result()
            equal(read_file(f"{at}/faults/small", direct=True), small[::-1], "content")


def mapping():
    message = null(20, 99)
    with check("a message buffer cannot be mapped: the connection is not accepted"), \
            nothing_left(on_server, "what is in use"), \
            shows(on_server, {"xprtrdma_dma_maperr": ["dma addr=0xffffffffffffffff"]}):
        # Those of the connection manager come first.
        fail(on_server, "map", 60)
        expect(refused(), "it was of use")
        equal(counts(on_server, "map")[1], 1, "mappings that failed")
        serves()
    for skip in (0, 1):
        with check(f"memory for RDMA Reads cannot be mapped, {skip}: no reply, and the connection ends"), \
                nothing_left(on_server, "what is in use"):
            with traced(on_server) as events:
                before, peer = server_connections(), Peer()
                good(peer)
                rkey, addr = peer.memory(message)
                fail(on_server, "map", skip)
                last_send(peer, fixed(20, NOMSG) + lists([(0, rkey, 13, addr), (0, rkey, 27, addr + 13)]))
                is_closed(before)
                unanswered(peer)
                peer.close()
                serves()
            shown(events, {"svcrdma_dma_map_rw_err":
                           [f"{addr + 13 * skip:#018x}:{rkey:#010x} nents=1 status=-"]})


def bouncing():
    # What is mapped by the one must not be unmapped by the other.
    on_server("nfsd-down")
    for side in sides():
        shell(side, f"echo 1 >{PARAMETERS}/bounce")
    on_server("nfsd-up")
    for vers in ("3", "4.2"):
        with server_folder("faults"), mounted(vers) as at:
            bounced(at, vers)
    if run in sides():
        secured()
    if SERVER_OURS:
        # The memory of processes is not for bouncing: the device uses it directly all the same.
        shell(run, f"[ ! -e {PARAMETERS} ] || echo 0 >{PARAMETERS}/bounce")
        mapping()
    on_server("nfsd-down")
    with check("all is unmapped"):
        for side in sides():
            # What is left belongs to the connection manager: a buffer for each message that it got.
            left = int(shell(side, f"cat {PARAMETERS}/mapped; echo 0 >{PARAMETERS}/bounce"))
            say(f"{left} mappings")
            expect(left < 50, "there are more mappings than the connection manager has")
    on_server("nfsd-up")


def chosen(name, group, *args):
    if not sys.argv[1:] or name in sys.argv[1:]:
        group(*args)


def sides():
    return [side for side, asked in ((run, (CLIENT_OURS or COMPARE) and NODES == 2),
                                     (on_server, SERVER_OURS or COMPARE)) if asked]


with contextlib.ExitStack() as stack:
    for side in sides():
        stack.enter_context(shim(side))
    if on_server in sides():
        for group in (accepting, posting, small_queue, memory):
            chosen(group.__name__, group)
    if run in sides():
        chosen("mounting", mounting)
        chosen("first", first)
        with server_folder("faults"), mounted("3", "noac") as at:
            for group in (connecting, marshalling, pages, sending, losing, client_memory):
                chosen(group.__name__, group, at)
    chosen("bouncing", bouncing)
done()
