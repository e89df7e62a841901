# SPDX-License-Identifier: GPL-2.0
"""Verbs and allocations that fail: what cannot be served is refused or tried again, and nothing is lost.

What fails is decided by tests/shim, in the guest whose side is under test.
"""

import collections
import random
import struct

from events import *
from lib import *
from load import Load
from peer import *
from shim import *

SERVER_OURS = os.environ["SERVER_FLAVOUR"] == "rust"
CLIENT_OURS = os.environ["CLIENT"] == "rust"


def refused():
    """A connection that is not accepted, or that ends before it was of use."""
    try:
        peer = Peer()
    except PyverbsError:
        return True
    try:
        good(peer)
    except (Gone, Quiet, Failed):
        return True
    finally:
        peer.close()
    return False


def serves():
    with connection() as peer:
        good(peer)


# --- the server


def accepting():
    for verb, skip, event in (("alloc_pd", 0, "svcrdma_pd_err"), ("create_cq", 0, None),
                              ("create_cq", 1, None), ("create_qp", 0, None),
                              ("create_qp", -1, "svcrdma_qp_err"), ("post_recv", 0, "svcrdma_rq_post_err"),
                              ("modify_qp", 1, "svcrdma_accept_err")):
        # Of queue pairs all sizes are tried.
        times = 1 if skip >= 0 else 20
        with check(f"a connection that cannot be accepted: {verb} fails, {skip}"), \
                nothing_left(on_server, "what is in use"), traced(on_server) as events:
            for _ in range(3):
                fail(on_server, verb, max(skip, 0), times)
                ended = refused()
                seen, failed = counts(on_server, verb)
                expect(failed, f"{verb}: {seen} calls, none failed")
                fail(on_server, verb, 0, 0)
                # A smaller queue pair may do.
                expect(ended or (verb, skip) == ("create_qp", 0), "it was of use")
            serves()
        if event:
            equal(len(of(events, event)), 3, event)
            say(of(events, event)[0])
    with check("a client that answers no Reads: refused"), nothing_left(on_server, "what is in use"), \
            traced(on_server) as events:
        try:
            peer = Peer(resources=0)
        except PyverbsError:
            pass
        else:
            peer.close()
            raise Failed("it was accepted")
        serves()
    equal(len(of(events, "svcrdma_initdepth_err")), 1, "svcrdma_initdepth_err")


def posting():
    message = null(20, 99)
    for name, verb in (("RDMA Reads", "post_send"), ("part of the RDMA Reads", "post_part")):
        with check(f"{name} cannot be posted: no reply, and the connection ends"), \
                nothing_left(on_server, "what is in use"), traced(on_server) as events:
            before, peer = connections(), Peer()
            good(peer)
            rkey, addr = peer.memory(message)
            fail(on_server, verb)
            peer.send(fixed(20, NOMSG) + lists([(0, rkey, 13, addr), (0, rkey, 27, addr + 13)]))
            is_closed(before)
            equal(counts(on_server, verb)[1], 1, "calls that failed")
            peer.close()
            serves()
        equal(len(of(events, "svcrdma_sq_post_err")), 1, "svcrdma_sq_post_err")
    for name, verb in (("a reply", "post_send"), ("part of a reply", "post_part")):
        with check(f"{name} cannot be posted: the connection ends"), \
                nothing_left(on_server, "what is in use"), traced(on_server, "sunrpc/svc_send") as events:
            before, peer = connections(), Peer()
            good(peer)
            space = peer.space(64)
            key, at = space.rkey, space.buf
            # With the first kind of header a Reply chunk is needed: a chain.
            fail(on_server, verb)
            peer.send(fixed(31) + lists((), [[(key, 4, at)] * 30] * 2, [(key, 40, at)]) + null(31))
            is_closed(before)
            equal(counts(on_server, verb)[1], 1, "calls that failed")
            peer.close()
            serves()
        equal([number(t, "status") for t in of(events, "svc_send") if number(t, "xid") == 31], [-107],
              "status of the reply")
    with check("Receives cannot be posted again: the connection ends"), \
            nothing_left(on_server, "what is in use"), traced(on_server) as events:
        peer = Peer()
        fail(on_server, "post_recv")
        try:
            for xid in range(40):
                good(peer, xid)
            raise Failed("it goes on")
        except (Gone, Quiet):
            pass
        peer.close()
        serves()
    equal(len(of(events, "svcrdma_rq_post_err")), 1, "svcrdma_rq_post_err")
    with check("the device reports an error of the queue pair: the connection ends"), \
            nothing_left(on_server, "what is in use"), traced(on_server) as events:
        before, peer = connections(), Peer()
        good(peer)
        # IB_EVENT_SQ_DRAINED is none, IB_EVENT_QP_FATAL is one.
        shell(on_server, f"echo 5 >{PARAMETERS}/event")
        good(peer)
        shell(on_server, f"echo 1 >{PARAMETERS}/event")
        is_closed(before)
        peer.close()
        serves()
    equal(len(of(events, "svcrdma_qp_error")), 2, "svcrdma_qp_error")


def small_queue():
    with check("more work requests than the send queue has: an error, and the connection stays"), \
            nothing_left(on_server, "what is in use"):
        shell(on_server, f"echo 64 >{PARAMETERS}/max_qp_wr")
        try:
            with connection() as peer:
                message = null(40, 99)
                rkey, addr = peer.memory(message + bytes(200))
                for count, kind in ((20, MSG), (100, ERROR), (20, MSG)):
                    rest = len(message) + 60 - count
                    reads = [(0, rkey, 1, addr + n) for n in range(count - 1)]
                    reads.append((0, rkey, rest, addr + count - 1))
                    peer.send(fixed(40, NOMSG) + lists(reads))
                    equal(struct.unpack_from(">4I", peer.recv())[3], kind, f"answer to {count} segments")
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
        for place in range(16):
            before = connections()
            with connection() as peer:
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
        fail(on_server, "memory", 0, 0)
        say(dict(outcomes))
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
        with mounted("3", "noac") as at, contextlib.ExitStack() as stack:
            jobs = [stack.enter_context(Load(f"{at}/faults", f"load{n}")) for n in range(6)]
            for job in jobs:
                job.goes_on(90)
            asked, refused = counts(run, "alloc_mr")
            stats = xprt_stats(at)
            say(f"of {asked} regions {refused} were refused; {stats['failed_marshal_count']} calls had to wait")
            equal(refused, 40, "regions that were refused")
            expect(stats["failed_marshal_count"] > 6, "no call had to wait")
            equal(stats["connect_count"], 1, "connections")


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
        lose()
        os.statvfs(at)
        equal(counts(run, "create_cq")[1], 2, "calls that failed")
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
    with check("memory that cannot be registered: an error of that call, and nothing is lost"):
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
        with check(f"{verb} fails now and then: calls are sent again, data are right", 240), \
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


def bounced(at):
    """One that copies through memory of its own sees what is written after it was told to look."""
    with check("data are right when DMA is by other memory"):
        data = random_bytes(3 << 20)
        for name in range(3):
            write_file(f"{at}/faults/b{name}", data, direct=name != 1)
            expect(read_file(f"{at}/faults/b{name}", direct=name != 1) == data, "what is read differs")
        for n in range(300):
            write_file(f"{at}/faults/{'n' * 100}{n}", b"x" * n)
        equal(len([n for n in os.listdir(f"{at}/faults") if n.startswith("nnn")]), 300, "names")
        for n in range(0, 300, 7):
            equal(read_file(f"{at}/faults/{'n' * 100}{n}"), b"x" * n, "content")
        os.symlink("y" * 3900, f"{at}/faults/link")
        equal(os.readlink(f"{at}/faults/link"), "y" * 3900, "link")
    if run in sides():
        with check("no room to map a call's memory, for a moment: the call is sent again, there is no error"):
            before = xprt_stats(at)
            fail(run, "map", 0, 3)
            write_file(f"{at}/faults/mapped", data, direct=True)
            equal(counts(run, "map")[1], 3, "mappings that failed")
            expect(read_file(f"{at}/faults/mapped", direct=True) == data, "what is read differs")
            equal(xprt_stats(at)["connect_count"], before["connect_count"], "connections")
        with check("no room to map a call's memory, for good: an error after some seconds"):
            fail(run, "map", 0, -1)
            try:
                write_file(f"{at}/faults/mapped", data[:65536], direct=True)
            except OSError as error:
                equal(error.errno, 5, "error")
            else:
                raise Failed("no error")
            finally:
                fail(run, "map", 0, 0)
            write_file(f"{at}/faults/mapped", data, direct=True)


def mapping():
    message = null(20, 99)
    for skip in (0, 1):
        with check(f"memory for RDMA Reads cannot be mapped, {skip}: no reply, and the connection ends"), \
                nothing_left(on_server, "what is in use"), traced(on_server) as events:
            before, peer = connections(), Peer()
            good(peer)
            rkey, addr = peer.memory(message)
            fail(on_server, "map", skip)
            peer.send(fixed(20, NOMSG) + lists([(0, rkey, 13, addr), (0, rkey, 27, addr + 13)]))
            is_closed(before)
            peer.close()
            serves()
        equal(len(of(events, "svcrdma_dma_map_rw_err")), 1, "svcrdma_dma_map_rw_err")


def bouncing():
    # What is mapped by the one must not be unmapped by the other.
    on_server("nfsd-down")
    for side in sides():
        shell(side, f"echo 1 >{PARAMETERS}/bounce")
    on_server("nfsd-up")
    for vers in ("3", "4.2"):
        with server_folder("faults"), mounted(vers) as at:
            bounced(at)
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
    return [side for side, ours in ((run, CLIENT_OURS and NODES == 2), (on_server, SERVER_OURS)) if ours]


with contextlib.ExitStack() as stack:
    for side in sides():
        stack.enter_context(shim(side))
    if SERVER_OURS:
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
