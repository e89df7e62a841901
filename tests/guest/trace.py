# SPDX-License-Identifier: GPL-2.0
"""Tracepoints have the C transport's names, fields and texts, and show what happened; messages in the
kernel log say who and why, and are not too many.

One side runs our module, the other one the C module: what both offer is compared.
"""

import collections
import re
import time

from events import *
from lib import *

RUST_CLIENT = os.environ["CLIENT"] == "rust"
OURS, THEIRS = (run, on_server) if RUST_CLIENT else (on_server, run)
# What Documentation/tracing.md says about differences of names and fields: there are none.
DIFFERENT = {}
CLOSED = 20999


def formats(side):
    """{event: (fields, text)} of events/rpcrdma."""
    text = shell(side, f"cd {TRACING}/events/rpcrdma && cat */format")
    found = {}
    for part in re.split(r"(?m)^name: ", text)[1:]:
        name = part.split("\n", 1)[0]
        fields = re.findall(r"(?m)^\tfield:(.*)$", part)
        # With the arguments, without casts, and the names that numbers have.
        printed = re.sub(r"\((unsigned )?[a-z_0-9]+( long)*\)\s*REC->", "REC->",
                         re.search(r"(?m)^print fmt: (.*)$", part).group(1))
        found[name] = (tuple(re.sub(r"\s+", " ", f) for f in fields),
                       re.sub(r"\s+", " ", re.sub(r"\"\s*\"", "", printed.strip())))
    return found


with check("events, fields and texts are those of the C module"):
    ours, theirs = formats(OURS), formats(THEIRS)
    expect(len(theirs) > 100, f"the C module has {len(theirs)} events")
    equal(sorted(set(theirs) ^ set(ours)), [], "events that one side has")
    equal({name: (ours[name], wanted) for name, wanted in theirs.items()
           if ours[name] != DIFFERENT.get(name, wanted)}, {}, "events that differ, and theirs")
    say(f"{len(ours)} events")


SEGMENT = r"(\d+@0x[0-9a-f]+:0x[0-9a-f]+)"


def segments(texts):
    return sorted(re.findall(SEGMENT, " ".join(texts)))


def client():
    data = random_bytes(1 << 18)
    with server_folder("trace"):
        with check("trace-cmd record -e rpcrdma: a mount, reads and writes"):
            path = "/tmp/trace.dat"
            script = (f"mkdir -p /mnt/a && mount -t nfs -o {options('3', 'noac')} {SERVER}:{EXPORT} /mnt/a"
                      " && dd if=/dev/urandom of=/mnt/a/trace/f bs=64K count=4 oflag=direct status=none"
                      " && dd if=/mnt/a/trace/f of=/dev/null bs=65535 count=4 iflag=direct status=none"
                      " && dd if=/mnt/a/trace/f of=/dev/null bs=1000 count=40 iflag=direct status=none"
                      " && ls -l /mnt/a/trace >/dev/null && umount /mnt/a")
            with traced(on_server) as its:
                run("trace-cmd", "record", "-q", "-b", "8192", "-o", path, "-e", "rpcrdma",
                    "-e", "sunrpc:xprt_transmit", "sh", "-c", script, timeout=110)
            events = parse(run("trace-cmd", "report", "-i", path, timeout=110))
            os.unlink(path)
            shell(run, f"echo 1 >{TRACING}/buffer_size_kb")
        count = collections.Counter(e.name for e in events)
        say(dict(count))
        with check("the connection: asked for, made, ended"):
            peer = f"peer=[{SERVER}]:{PORT}"
            for name in ("xprtrdma_op_connect", "xprtrdma_connect", "xprtrdma_disconnect"):
                equal(count[name], 1, name)
                expect(of(events, name)[0].startswith(peer), of(events, name)[0])
            equal(number(of(events, "xprtrdma_connect")[0], "rc"), 0, "rc")
            text, = of(events, "xprtrdma_inline_thresh")
            expect(f"{SERVER}:{PORT} neg send/recv=4096/4096" in text, text)
            equal((count["rpcrdma_client_register"], count["rpcrdma_client_unregister"]), (1, 1),
                  "connections that wanted to know of a removal, and did not any more")
            expect(f"device={RDMA}0 " in of(events, "rpcrdma_client_register")[0], "name of the device")
        with check("each call: one marshal, one Send, one message, one reply, with its XID"):
            sent = [t for t in of(events, "xprt_transmit") if f":{PORT}" not in t or "xid" in t]
            calls = xids(of(events, "xprtrdma_marshal"))
            expect(calls, "no calls")
            equal(len(set(calls)), len(calls), "XIDs that are different")
            expect(set(calls) <= set(xids(sent)), "XIDs that sunrpc does not know")
            equal(xids(of(events, "xprtrdma_reply")), calls, "XIDs of replies")
            equal(count["xprtrdma_post_send"], len(calls), "Sends")
            good = [t for t in of(events, "xprtrdma_wc_receive") if "(0/0x0)" in t]
            equal(len(good), len(calls), "messages")
            tasks = [t.split()[0] for t in of(events, "xprtrdma_marshal")]
            equal([t.split()[0] for t in of(events, "xprtrdma_post_send")], tasks, "tasks")
            for text in good:
                expect(number(text, "received") >= 28, text)
        with check("message buffers: what is posted, and what is complete"):
            received, posted = cids(good), cids(of(events, "xprtrdma_post_recv"))
            equal(received - posted, collections.Counter(), "messages in buffers that were not posted")
            equal(cids(of(events, "xprtrdma_wc_receive")), posted, "Receives that are complete at the end")
            told = [re.fullmatch(rf"{re.escape(peer)} cq\.id=\d+ (\d+) new recvs, (\d+) active", t)
                    for t in of(events, "xprtrdma_post_recvs")]
            expect(told and all(told), f"{told}")
            equal(sum(int(t[1]) for t in told), posted.total(), "Receives that were posted")
            equal({int(t[2]) for t in told}, {int(told[0][1])}, "Receives in the ring: the first were all")
            signalled = cids(t for t in of(events, "xprtrdma_post_send") if t.endswith(" signaled"))
            expect(signalled, "no Send was to have a completion")
            equal(cids(of(events, "xprtrdma_wc_send")), signalled, "Sends with a completion")
            expect(all("status=SUCCESS (0/0x0)" in t for t in of(events, "xprtrdma_wc_send")), "their status")
        with check("replies: what was copied to the page list, and what the server has written"):
            copied = [t for t in of(events, "xprtrdma_fixup") if "fixup=1000 " in t]
            equal(len({task(t) for t in copied} & set(tasks)), 40, f"small reads of {len(copied)}")
            expect(all(re.search(r" xdr=\d+/1000/\d+$", t) for t in copied), copied)
            got = segments(of(events, "xprtrdma_decode_seg"))
            expect(got, "no segments")
            equal(got, segments(of(its, "svcrdma_encode_wseg")), "segments in replies, and what the server says")
        with check("memory: what is mapped is what messages name, and none stays"):
            mapped = segments(of(events, "xprtrdma_mr_map"))
            named = of(events, "xprtrdma_chunk_read", "xprtrdma_chunk_write", "xprtrdma_chunk_reply")
            equal(segments(named), mapped, "segments in chunks")
            for name in ("xprtrdma_chunk_read", "xprtrdma_chunk_write", "xprtrdma_chunk_wp"):
                expect(count[name] >= 4, f"{name}: {count[name]}")
            equal(len(of(events, "xprtrdma_mr_fastreg")), len(mapped), "registrations")
            # Ours does not rely on the server alone here.
            ended = count["xprtrdma_mr_localinv"] + (0 if os.path.exists(TRUST) else count["xprtrdma_mr_reminv"])
            expect(count["xprtrdma_mr_reminv"], "nothing that the server has invalidated")
            equal(ended, len(mapped), "invalidations")
            expect(count["xprtrdma_mr_unmap"] >= len(mapped), "regions that are mapped still")
            text = " ".join(of(events, "xprtrdma_marshal"))
            expect("read list/inline" in text and "inline/write list" in text, "how payload travels")

        with check("nothing is shown when nobody looks"), mounted("3", "noac") as at:
            shell(run, f"echo >{TRACING}/trace")
            write_file(f"{at}/trace/g", data, direct=True)
            equal(parse(read(f"{TRACING}/trace")), [], "events")

    with check("a port without a listener: an event for each attempt, not as many messages", 300):
        shell(run, "dmesg -C")
        begun, made, room = time.monotonic(), 0, 20
        with traced(run) as events:
            # More than there can be messages, ten in half a minute; on a machine that is too slow for that, enough.
            # (mount.nfs tries again by itself.)
            while made <= room and made < 50:
                run("mount", "-t", "nfs", "-o", f"vers=4.2,proto=rdma,port={CLOSED},retry=0",
                    f"{SERVER}:{EXPORT}", "/mnt/a", ok=False)
                made += 1
                room = 20 + 10 * int((time.monotonic() - begun) / 30)
        attempts = of(events, "xprtrdma_connect")
        expect(len(attempts) >= made, f"{len(attempts)} attempts")
        for text in attempts:
            expect(text.startswith(f"peer=[{SERVER}]:{CLOSED} rc=-111 "), text)
        lines = [l for l in log(run) if f"{SERVER}:{CLOSED}" in l]
        wanted = f"cannot connect to server {SERVER}:{CLOSED} by device {RDMA}0: "
        # The debug kernel does not know names of errors.
        expect(lines and lines[0].partition(wanted)[2] in ("ECONNREFUSED", "Error(111)"), f"messages: {log(run)}")
        say(f"{len(attempts)} attempts, {len(lines)} messages")
        expect(len(lines) <= room, f"{len(lines)} messages of {len(attempts)} attempts")

    with check("a connection that is lost is reported: who, which device, why"), mounted("4.2") as at:
        shell(run, "dmesg -C")
        lines = log(run)
        on_server("nfsd-down; nfsd-up")
        os.listdir(at)
        wait_for(lambda: any("is lost" in l for l in log(run)), 30, "a message")
        line = [l for l in log(run) if "is lost" in l][0]
        expect(f"server {SERVER}:{PORT} by device {RDMA}0 is lost: " in line, line)
        wait_for(lambda: any("connected to server" in l for l in log(run)), 60, "a message")

    with check("a session wants callbacks: the slots that are made"):
        with traced(run) as events, mounted("4.2") as at:
            made = xprt_stats(at)["mrs_allocated"]
        shown(events, {"xprtrdma_cb_setup": [rf"^peer=\[{SERVER}\]:{PORT} 16 reqs$"]})
        told = [re.fullmatch(rf"peer=\[{SERVER}\]:{PORT} created (\d+) MRs", t)
                for t in of(events, "xprtrdma_createmrs")]
        expect(told and all(told) and sum(int(t[1]) for t in told) >= made > 0,
               f"{made} regions: {of(events, 'xprtrdma_createmrs')}")

    with check("the device is removed and comes back: who is told, and when"), mounted("4.2") as at, \
            server_folder("trace"):
        before = xprt_stats(at)["connect_count"]
        with traced(run) as events:
            run("rdma", "link", "delete", f"{RDMA}0")
            run("rdma", "link", "add", f"{RDMA}0", "type", RDMA, "netdev", NETDEV)
            write_file(f"{at}/trace/h", b"back")
            wait_for(lambda: xprt_stats(at)["connect_count"] > before, 60, "another connection")
        device = f"device={RDMA}0"
        names = [e.name for e in events if e.name.startswith("rpcrdma_client") and device in e.text]
        order = ["rpcrdma_client_remove_one", "rpcrdma_client_unregister", "rpcrdma_client_completion",
                 "rpcrdma_client_remove_one_done", "rpcrdma_client_add_one", "rpcrdma_client_register"]
        say(names)
        # What it waits for may be over before it does.
        waits = names.index("rpcrdma_client_wait_on")
        expect(0 < waits < names.index("rpcrdma_client_completion"), "it waits too early, or too late")
        del names[waits]
        equal(names, order, "events of the device")
        texts = of(events, "xprtrdma_device_removal")
        equal(texts, [f"device {RDMA}0 to be removed, disconnecting {SERVER}:{PORT}"], "its text")


def server():
    size = 1 << 18
    client = "10.0.0.2"
    with server_folder("trace"):
        with check("a mount, writes and reads: events of both ends have the same XIDs"):
            shell(on_server, "dmesg -C")
            with traced(run) as theirs, traced(on_server) as events:
                with mounted("3", "noac") as at:
                    write_file(f"{at}/trace/f", random_bytes(size), direct=True, block=1 << 16)
                    read_file(f"{at}/trace/f", direct=True, block=1 << 16)
                    on_server(f"cd {EXPORT}/trace; touch $(seq -f {'n' * 100}%g 200)")
                    equal(len(os.listdir(f"{at}/trace")), 201, "names")
                # The last reply is complete when the connection is gone.
                wait_for(lambda: any("has ended" in l for l in log(on_server)), 20, "the end")
            count = collections.Counter(e.name for e in events)
            say(dict(count))
            calls = xids(of(theirs, "xprtrdma_marshal"))
            expect(calls, "the client has no calls")
            equal(xids(of(events, "svcrdma_decode_rqst")), calls, "XIDs")
            equal(count["svcrdma_wc_recv"], len(calls), "messages")
            equal(count["svcrdma_post_send"], len(calls), "Sends")
            equal(count["svcrdma_wc_send"], len(calls), "Sends that are complete")
        with check("message buffers: what is posted, and what is complete"):
            posted, came = cids(of(events, "svcrdma_post_recv")), cids(of(events, "svcrdma_wc_recv"))
            equal(came - posted, collections.Counter(), "messages in buffers that were not posted")
            equal(posted - came, cids(of(events, "svcrdma_wc_recv_flush")), "Receives that were flushed")
            sends = cids(of(events, "svcrdma_post_send"))
            equal(cids(of(events, "svcrdma_wc_send")), sends, "Sends")
            copied, long = (of(events, "svcrdma_" + name) for name in ("send_pullup", "post_reply_chunk"))
            expect(long, "no reply went to a Reply chunk")
            equal(cids(copied + long), sends, "Sends with a copied reply, and those without")
            # What the client has got, but for replies that are in Reply chunks.
            sizes = [int(re.search(r"\(total (\d+)\)$", t)[1]) for t in copied]
            received = [number(t, "received") for t in of(theirs, "xprtrdma_wc_receive") if "(0/0x0)" in t]
            more = collections.Counter(received) - collections.Counter(sizes)
            equal(more.total(), len(received) - len(sizes), f"messages of {sizes}, of which {received} came")
            equal(more.total(), len(long), "messages without a reply")
        with check("payload: all of it is read and written, in chunks of the client"):
            for ours, its in (("svcrdma_decode_rseg", ("xprtrdma_chunk_read",)),
                              ("svcrdma_decode_wseg", ("xprtrdma_chunk_write", "xprtrdma_chunk_wp",
                                                       "xprtrdma_chunk_reply")),
                              ("svcrdma_encode_wseg", ("xprtrdma_decode_seg",))):
                got = segments(of(events, ours))
                expect(got, f"no {ours}")
                equal(got, segments(of(theirs, *its)), ours)
            moved = cids(of(events, "svcrdma_wc_read", "svcrdma_wc_write"))
            equal(cids(of(events, "svcrdma_cc_release")), moved, "transfers that are over")
            for name in ("read", "write", "reply"):
                expect(all(number(t, "sqecount") > 0 for t in of(events, f"svcrdma_post_{name}_chunk")), name)
            reads = of(events, "svcrdma_wc_read")
            equal(sum(number(t, "totalbytes") for t in reads), size, "bytes that were read")
            expect(all(number(t, "latency-us") > 0 for t in reads), "latency")
            for name in ("svcrdma_post_read_chunk", "svcrdma_read_finished"):
                equal(count[name], len(reads), name)
            writes = size >> 16
            expect(count["svcrdma_post_write_chunk"] >= writes, "Write chunks")
            expect(count["svcrdma_wc_write"] >= writes, "Write chunks that are complete")
        with check("messages tell of the client's connection"):
            for wanted in (rf"connection of client {client}:\d+ by device {RDMA}0: \d+ credits",
                           rf"connection of client {client}:\d+ by device {RDMA}0 has ended"):
                lines = [l for l in log(on_server) if re.search(wanted, l)]
                equal(len(lines), 1, f"messages {wanted!r} in {log(on_server)}")

    from peer import Peer, error, fixed, good, lists, null, silent, ERR_VERS, MSGP, RDMA_DONE
    with check("messages that make no sense: which, and whose"):
        with traced(on_server) as events:
            peer = Peer()
            peer.send(fixed(0x1234)[:12])
            error(peer, 0x1234)
            peer.send(fixed(0x1235, version=2) + lists() + null(0x1235))
            error(peer, 0x1235, ERR_VERS)
            peer.send(fixed(0x1236, MSGP) + lists() + null(0x1236))
            error(peer, 0x1236)
            peer.send(fixed(0x1237) + lists([(0, 1, 2, 3)])[:8])
            error(peer, 0x1237)
            peer.send(fixed(0x1238, RDMA_DONE) + lists() + null(0x1238))
            silent(peer, 0.5)
            good(peer)
            peer.close()
        equal(number(of(events, "svcrdma_decode_short_err")[0], "hdrlen"), 12, "length")
        for name, xid in (("svcrdma_decode_badvers_err", 0x1235), ("svcrdma_err_vers", 0x1235),
                          ("svcrdma_decode_badproc_err", 0x1236),
                          ("svcrdma_decode_parse_err", 0x1237), ("svcrdma_decode_drop_err", 0x1238)):
            equal(xids(of(events, name)), [xid], name)
        equal(xids(of(events, "svcrdma_err_chunk")), [0x1234, 0x1236, 0x1237], "svcrdma_err_chunk")
    with check("a peer that sends nothing else: all events, few messages"):
        shell(on_server, "dmesg -C")
        with traced(on_server) as events:
            peer = Peer()
            for n in range(60):
                peer.send(fixed(n, version=9) + lists() + null(n))
                error(peer, n, ERR_VERS)
            good(peer)
            peer.close()
        equal(len(of(events, "svcrdma_decode_badvers_err")), 60, "events")
        lines = [l for l in log(on_server) if f"client {client}:" in l and "version" in l]
        expect(0 < len(lines) <= 10, f"{len(lines)} messages")
    with check("how many messages were not shown is told with the next one"):
        time.sleep(31)
        peer = Peer()
        peer.send(fixed(1, version=9) + lists() + null(1))
        error(peer, 1, ERR_VERS)
        peer.close()
        said = "\n".join(log(on_server))
        missed = list(map(int, re.findall(r" (\d+) messages like the next one are not shown", said)))
        expect(missed, f"nothing in {said}")
        equal(sum(missed) + said.count("another version of the protocol"), 61, "messages shown and not shown")
    with check("the device is removed: an event for each connection"):
        with traced(on_server) as events:
            peers = [Peer() for _ in range(2)]
            for peer in peers:
                good(peer)
            on_server(f"rdma link delete {RDMA}0; rdma link add {RDMA}0 type {RDMA} netdev $NETDEV")
            for peer in peers:
                peer.close()
        texts = of(events, "svcrdma_device_removal")
        equal(len(set(texts)), len(peers), "svcrdma_device_removal")
        told = f"device {RDMA}0 to be removed, disconnecting {client}:"
        expect(all(t.startswith(told) for t in texts), texts)
        with mounted("3"):
            pass


if RUST_CLIENT:
    client()
else:
    server()
done()
