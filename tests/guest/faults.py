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

PARAMETERS = "/sys/module/shim/parameters"
SERVER_OURS = os.environ["SERVER_FLAVOUR"] == "rust"
CLIENT_OURS = os.environ["CLIENT"] == "rust"


def fail(side, verb, skip=0, times=1):
    """Let `skip` calls of a verb pass, then `times` fail."""
    shell(side, f"echo {verb} {skip} {times} >{PARAMETERS}/fail")


def counts(side, verb):
    """How many calls there were since, and how many of them failed."""
    for line in shell(side, f"cat {PARAMETERS}/fail").splitlines():
        name, seen, failed = line.split()
        if name == verb:
            return int(seen), int(failed)


def in_use(side):
    """RDMA objects of the kernel, and the references of the module."""
    return shell(side, "rdma resource show | grep -v '^$'; cat /sys/module/rpcrdma*/refcnt")


@contextlib.contextmanager
def shim(side):
    """The shim is there in the body, with the code whose allocations may fail."""
    shell(side, "insmod /run/payload/modules/shim.ko")
    try:
        text = shell(side, "grep -i ' t .*\\[rpcrdma_rust\\]' /proc/kallsyms | cut -d' ' -f1 | sort")
        first, *_, last = text.split()
        shell(side, f"echo {int(first, 16)},{int(last, 16) + 4096} >{PARAMETERS}/text")
        yield
    finally:
        shell(side, "rmmod shim")


@contextlib.contextmanager
def nothing_left(side, what):
    before = in_use(side)
    yield
    wait_for(lambda: in_use(side) == before, 30, f"{what}: {before}")


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
            peer.send(fixed(31) + lists((), [[(key, 4, at)] * 59], [(key, 10, at), (key, 30, at + 10)])
                      + null(31))
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


def lose():
    """The connection ends with the next call: its Send cannot be posted."""
    fail(run, "post_send")


def connecting(at):
    for verb, skip in (("alloc_pd", 0), ("create_cq", 0), ("create_cq", 1), ("create_qp", 0),
                       ("post_recv", 0), ("alloc_mr", 0), ("modify_qp", 0), ("modify_qp", 1)):
        with check(f"a connection that cannot be made at first: {verb} fails, {skip}"), \
                nothing_left(run, "what is in use"):
            before = xprt_stats(at)["connect_count"]
            fail(run, verb, skip)
            lose()
            os.statvfs(at)
            equal([counts(run, v)[1] for v in ("post_send", verb)], [1, 1], "calls that failed")
            equal(xprt_stats(at)["connect_count"] - before, 1, "connections that were made")
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
    with check("no region, and none to be had for a while: calls wait"), Load(f"{at}/faults") as load:
        load.goes_on(60)
        # A new connection begins with eight, and makes more when they run short.
        fail(run, "alloc_mr", 8, 40)
        lose()
        jobs = [Load(f"{at}/faults", f"load{n}") for n in range(6)]
        for job in jobs:
            with job:
                job.goes_on(90)
        say(f"{counts(run, 'alloc_mr')} regions were asked for, refused")
        load.goes_on(60)
        fail(run, "alloc_mr", 0, 0)


def losing(at):
    for verb in ("post_send", "post_part", "post_recv"):
        with check(f"{verb} fails now and then: calls are sent again, data are right", 240), \
                nothing_left(run, "what is in use"), Load(f"{at}/faults") as load:
            load.goes_on(60)
            for skip in (0, 3, 10, 1):
                before = xprt_stats(at)["connect_count"]
                fail(run, verb, skip)
                wait_for(lambda: counts(run, verb)[1], 30, f"{verb} has failed")
                load.goes_on(60)
                equal(xprt_stats(at)["connect_count"] - before, 1, "connections that were made")
    with check("the queue pair fails while nothing is under way: it is noticed, without a call"), \
            nothing_left(run, "what is in use"):
        os.statvfs(at)
        before = xprt_stats(at)["connect_count"]
        shell(run, "dmesg -C")
        shell(run, f"echo 1 >{PARAMETERS}/error")
        wait_for(lambda: any("is lost" in l for l in log(run)), 10, "a message")
        os.statvfs(at)
        equal(xprt_stats(at)["connect_count"] - before, 1, "connections that were made")


def client_memory(at):
    with check("allocations fail while connections are made", 600), nothing_left(run, "what is in use"):
        fail(run, "memory", 1 << 30, 0)
        lose()
        os.statvfs(at)
        total, _ = counts(run, "memory")
        expect(total > 100, f"{total} allocations")
        places = sorted({0, 1, 2, 3, *random.sample(range(4, total), 6), total - 1})
        say(f"of {total} allocations {places} fail")
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


def sides():
    return [side for side, ours in ((run, CLIENT_OURS and NODES == 2), (on_server, SERVER_OURS)) if ours]


with contextlib.ExitStack() as stack:
    for side in sides():
        stack.enter_context(shim(side))
    if SERVER_OURS:
        accepting()
        posting()
        small_queue()
        memory()
    if run in sides():
        with server_folder("faults"), mounted("3", "noac") as at:
            connecting(at)
            marshalling(at)
            losing(at)
            client_memory(at)
    # What is mapped by the one must not be unmapped by the other.
    on_server("nfsd-down")
    for side in sides():
        shell(side, f"echo 1 >{PARAMETERS}/bounce")
    on_server("nfsd-up")
    for vers in ("3", "4.2"):
        with server_folder("faults"), mounted(vers) as at:
            bounced(at)
    if SERVER_OURS:
        mapping()
    on_server("nfsd-down")
    with check("all is unmapped"):
        for side in sides():
            # What is left belongs to the connection manager.
            left = int(shell(side, f"cat {PARAMETERS}/mapped; echo 0 >{PARAMETERS}/bounce"))
            say(f"{left} mappings")
    on_server("nfsd-up")
done()
