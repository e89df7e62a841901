# SPDX-License-Identifier: GPL-2.0
"""Kerberos: data and names by all three flavours, what travels how, connections lost, privacy."""

import contextlib
import ctypes
import itertools
import os
import re
import subprocess
import sys
import time

from disk import frozen_disk
from events import of, traced as transport_events
from lib import *

FLAVOURS = ("krb5", "krb5i", "krb5p")
SIZES = (0, 1, 4095, 4096, 4097, 65537, (1 << 20) + 1)
CONTENT = {size: random_bytes(size, seed=n) for n, size in enumerate(SIZES)}
SUMS = {str(size): sha(data) for size, data in CONTENT.items()}
FILES = 300
NAMES = {f"file-{n:03}": n for n in range(FILES)}
BIG = 8 << 20
PLAIN = f"{EXPORT} *(rw,async,no_root_squash,no_subtree_check,insecure,fsid=1"


def secure(vers, flavour, extra=""):
    """A mount by host name: the name is part of what the server proves."""
    return mounted(vers, f"sec={flavour}" + (extra and "," + extra), server="server")


def export(sec):
    on_server(f"echo '{PLAIN}{sec and ',sec=' + sec})' >/etc/exports && exportfs -ra")


def grown(at, before, *names):
    after = xprt_stats(at)
    return {name: after[name] - before[name] for name in names}


def there(vers, flavour, folder):
    """Files of awkward sizes, a symlink and an attribute are made, and compared on the server."""
    kind = f"v{vers} {flavour}"
    with check(f"{kind}: files are written"), secure(vers, flavour) as at:
        line, = [l for l in read("/proc/mounts").splitlines() if f" {at} " in l]
        expect(f",sec={flavour}," in line, f"not with {flavour}: {line}")
        for size, data in CONTENT.items():
            write_file(f"{at}/krb/b{size}", data)
            write_file(f"{at}/krb/d{size}", data, direct=True)
        before = xprt_stats(at)
        os.symlink(link_target(flavour), f"{at}/krb-link")
        expect(grown(at, before, "read_chunk_count")["read_chunk_count"], "no read chunk")
        if vers == "4.2":
            os.setxattr(f"{at}/krb/b0", "user.big", attribute(flavour))
    with check(f"{kind}: what the server has is what was written"):
        wanted = {how + size: SUMS[size] for how in "bd" for size in SUMS}
        equal(server_sums(folder), wanted, "sums")
        equal(on_server(f"readlink {EXPORT}/krb-link").strip(), link_target(flavour), "symlink")
        if vers == "4.2":
            text = on_server(f"cd {folder} && getfattr -n user.big --only-values b0 | sha256sum")
            equal(text.split()[0], sha(attribute(flavour)), "sha256 of the attribute")


# With privacy nfsd takes no NFSv4 call, over any transport, in which operations follow on a symlink
# or an attribute of more than about a page.
def link_target(flavour):
    return "/".join(["y" * 99] * (38 if flavour == "krb5p" else 40))


def attribute(flavour):
    return random_bytes(3000 if flavour == "krb5p" else 20000, seed=3)


def back(vers, flavour, folder):
    """After a new mount all is read back. How a megabyte travels."""
    kind = f"v{vers} {flavour}"
    on_server(f"mkdir {folder}/many && cd {folder}/many && python3 -c 'for n in range({FILES}):"
              " open(f\"file-{n:03}\", \"w\").truncate(n)'")
    try:
        with check(f"{kind}: files are read back"), secure(vers, flavour) as at:
            wrong = [size for size, data in CONTENT.items()
                     if read_file(f"{at}/krb/d{size}") != data
                     or read_file(f"{at}/krb/b{size}", direct=True) != data]
            equal(wrong, [], "sizes of files that were not read back as written")
            equal(os.readlink(f"{at}/krb-link"), link_target(flavour), "symlink")
            if vers == "4.2":
                space, value = ctypes.create_string_buffer(65536), attribute(flavour)
                got = libc.getxattr(f"{at}/krb/b0".encode(), b"user.big", space, 65536)
                equal(got, len(value), "length of the attribute")
                expect(space.raw[:got] == value, "the attribute differs")
            before = xprt_stats(at)
            with os.scandir(f"{at}/krb/many") as entries:
                equal({e.name: e.stat().st_size for e in entries}, NAMES, "files and their sizes")
            expect(grown(at, before, "reply_chunk_count")["reply_chunk_count"], "no reply chunk")
            shapes(at, flavour)
    finally:
        on_server(f"rm -rf {folder}/* {EXPORT}/krb-link")


def shapes(at, flavour):
    """A megabyte by itself in a chunk; with integrity or privacy, in a long call and long reply."""
    data, path = random_bytes(1 << 20), f"{at}/krb/shape"
    names = ("read_chunk_count", "write_chunk_count", "reply_chunk_count", "nomsg_call_count")

    def counted(action):
        before, sent = xprt_stats(at), transmissions(at)
        with transport_events(run, only=["xprtrdma_marshal"]) as events:
            result = action()
        calls = {name: n - sent[name] for name, n in transmissions(at).items() if n != sent[name]}
        calls["how"] = of(events, "xprtrdma_marshal")
        return result, grown(at, before, *names), calls

    _, wrote, stores = counted(lambda: write_file(path, data, direct=True))
    back, took, loads = counted(lambda: read_file(path, direct=True))
    expect(back == data, "what was read back differs")
    direct = flavour == "krb5"
    if direct and SLOWNESS > 1 and wrote["nomsg_call_count"]:
        # sunrpc reads whether that is forbidden from memory that it has not written to. Stock kernels clear it.
        say("the flavour is said to touch all data")
        direct = False
    expect(wrote["read_chunk_count"], f"write: {wrote}, calls: {stores}")
    expect(direct != bool(wrote["nomsg_call_count"]), f"write: {wrote}, calls: {stores}")
    expect(direct == bool(took["write_chunk_count"]), f"read: {took}, calls: {loads}")
    expect(direct or took["reply_chunk_count"], f"read: {took}, calls: {loads}")


def as_alice(*command):
    status, text = run("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c",
                       " ".join(command), ok=False)
    return status, text.strip()


COPIER = """
import mmap, os, sys, time
source, target, block = sys.argv[1], sys.argv[2], 128 << 10
direct = lambda path: os.O_DIRECT if path.startswith("/mnt/") else 0
src = os.open(source, os.O_RDONLY | direct(source))
dst = os.open(target, os.O_WRONLY | os.O_CREAT | direct(target), 0o644)
room, at = mmap.mmap(-1, block), 0
while True:
    got = os.preadv(src, [room], at)
    if not got:
        break
    at += os.pwrite(dst, memoryview(room)[:got], at)
    print(at, flush=True)
    time.sleep(0.03)
os.fsync(dst)
"""


def interrupted(vers, flavour, seconds, extra="", breaks=True):
    """Copies there and back while the cable is out for some seconds."""
    if NODES == 1:
        raise Skip("one guest has no cable")
    data = random_bytes(BIG)
    with open("/tmp/data", "wb") as f:
        f.write(data)
    with server_folder("cut") as folder, secure(vers, flavour, extra) as at:
        for source, target in (("/tmp/data", f"{at}/cut/f"), (f"{at}/cut/f", "/tmp/back")):
            made = xprt_stats(at)["connect_count"]
            # A process of its own: one that starts others must have no file of the mount open.
            job = subprocess.Popen([sys.executable, "-c", COPIER, source, target], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for _ in range(8):
                job.stdout.readline()
            link("down")
            time.sleep(seconds)
            expect(job.poll() is None, "the copy was over before the cut")
            link("up")
            text = job.communicate(timeout=120 * SLOWNESS)[0].split("\n")
            equal(job.returncode, 0, f"status of the copier ({text[-4:]})")
            made = xprt_stats(at)["connect_count"] - made
            say(f"{source}: cut for {seconds} s, connections made: {made}")
            # TCP, which iWARP is made of, waits longer.
            expect(made or not breaks, "the connection was never lost")
        equal(server_sums(folder)["f"], sha(data), "sum on the server")
        with open("/tmp/back", "rb") as f:
            expect(f.read() == data, "what was read back differs")


def on_the_wire(flavour):
    """What of a name and of a file's content a listener sees."""
    name, word = b"name-of-the-secret-file", b"what-nobody-may-see!"
    capture = "/tmp/krb5.pcap"
    tcpdump = subprocess.Popen(["tcpdump", "-i", NETDEV, "-U", "-s", "0", "-w", capture],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: os.path.exists(capture), 20, "tcpdump ready")
        with secure("4.2", flavour) as at:
            time.sleep(0.5)
            path = f"{at}/krb/{name.decode()}"
            write_file(path, word * 1000, direct=True)
            expect(read_file(path, direct=True) == word * 1000, "data differ")
        time.sleep(1)
    finally:
        tcpdump.terminate()
        tcpdump.wait(20 * SLOWNESS)
    with open(capture, "rb") as f:
        seen = f.read()
    os.unlink(capture)
    expect(len(seen) > 40000, f"only {len(seen)} bytes were captured")
    return name in seen, word in seen


# The third argument is the task, the fourth the stream, which leads to the head of the call.
PROBES = """p:krb5/encode auth_rpcgss:gss_wrap_req_priv task=%dx:x64 head=+0(+8(%cx)):x64
r:krb5/encoded auth_rpcgss:gss_wrap_req_priv
p:krb5/give_up auth_rpcgss:priv_release_snd_buf
r:krb5/gave_up auth_rpcgss:priv_release_snd_buf
p:krb5/no_queue_pair ib_destroy_qp_user
"""


@contextlib.contextmanager
def traced(lines):
    """Record when sunrpc gives up encrypted pages, and which pages become free by that."""
    tracing = "/sys/kernel/tracing"
    mine = f"{tracing}/instances/krb5"
    write(f"{tracing}/kprobe_events", PROBES)
    os.mkdir(mine)
    try:
        write(f"{mine}/buffer_size_kb", "16384")
        write(f"{mine}/events/krb5/give_up/trigger", "enable_event:kmem:mm_page_free")
        write(f"{mine}/events/krb5/gave_up/trigger", "disable_event:kmem:mm_page_free")
        for event in "sunrpc/xprt_disconnect_force", "sunrpc/rpc_task_run_action", "rpcrdma/xprtrdma_post_send":
            write(f"{mine}/events/{event}/enable", "1")
        write(f"{mine}/events/krb5/enable", "1")
        yield
        write(f"{mine}/events/krb5/enable", "0")
        lines += read(f"{mine}/trace").splitlines()
    finally:
        os.rmdir(mine)
        write(f"{tracing}/kprobe_events", "")


def given_up(lines):
    """For each call encoded anew while the queue pair by which it was sent is to go, but is there: pages that
    became free, and whether its head is again where it was.

    An interrupt amid that frees pages of others."""
    frees, running, encoding, giving, heads = [], {}, {}, {}, {}
    late, sent = False, set()
    for line in lines:
        # Flags: interrupts are off, to be rescheduled, within an interrupt.
        match = re.match(r" *.*-(\d+) +\[\d+\] ..(.)\S* +[\d.]+: (\w+):(?: task:(\w+@\w+))?", line)
        if not match:
            continue
        pid, interrupt, event, name = match.groups()
        if event == "xprt_disconnect_force":
            late = True
        elif event == "no_queue_pair":
            late = False
            sent.clear()
        elif event == "xprtrdma_post_send":
            sent.add(name)
        elif event == "rpc_task_run_action":
            running[pid] = name
        elif event == "encode":
            task, head = re.search(r"task=(\w+) head=(\w+)", line).groups()
            encoding[pid] = heads.get(task) == head
            heads[task] = head
        elif event == "encoded":
            encoding.pop(pid, None)
        elif event == "give_up" and late and pid in encoding and running.get(pid) in sent:
            giving[pid] = 0
        # Whoever gives up may be interrupted until the queue pair is gone.
        elif event == "mm_page_free" and pid in giving and interrupt == "." and late and running.get(pid) in sent:
            giving[pid] += 1
        elif event == "gave_up" and pid in giving:
            frees.append((giving.pop(pid), encoding.get(pid)))
    return frees


WRITER = """
import os, sys
with open("/tmp/data", "rb") as f:
    data = f.read()
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o644)
print("open", flush=True)
while sys.stdin.readline():
    os.pwrite(fd, data, 0)
    os.fsync(fd)
    print("written", flush=True)
"""


def kept_pages():
    """Timeouts make sunrpc encode calls anew while the server may still read them: here it is at work on them."""
    lines = []
    with frozen_disk("sec=krb5p") as disk, \
            mounted("3", "sec=krb5p,timeo=10,wsize=65536", server="server", export=disk) as at:
        data = random_bytes(512 << 10)
        with open("/tmp/data", "wb") as f:
            f.write(data)
        job = subprocess.Popen([sys.executable, "-c", WRITER, f"{at}/f"], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        equal(job.stdout.readline(), "open\n", "word of the writer")
        early = []
        # Whether a call is encoded before its queue pair is gone is up to time.
        for _ in range(8):
            with traced(lines):
                on_server(f"fsfreeze -f {disk}")
                job.stdin.write("go\n")
                job.stdin.flush()
                time.sleep(4)
                on_server(f"fsfreeze -u {disk}")
                equal(job.stdout.readline(), "written\n", "word of the writer")
            early = given_up(lines)
            if early:
                break
        job.stdin.close()
        equal(job.wait(120 * SLOWNESS), 0, "status of the writer")
        equal(on_server(f"sha256sum <{disk}/f").split()[0], sha(data), "sum on the server")
    frees, again = [pages for pages, _ in early], [place for _, place in early]
    say(f"calls encoded anew on a connection: {len(early)}; pages freed by that: {frees}; "
        f"with the head where it was: {sum(again)}")
    expect(early, "no call was encoded anew in time")
    if sum(frees) > len(frees):
        write("/out/krb5-trace", "\n".join(lines))
    # An array of pointers goes too, and with it now and then a page of the allocator.
    expect(sum(frees) <= len(frees), "pages became free that the peer could still read")
    expect(not any(again), "plain text came about where the peer could still read")


with check("a realm, keys, and the daemons of RPCSEC_GSS"):
    on_server("kerberos-up")
    if NODES == 2:
        run("kerberos-up")
    export("sys:krb5:krb5i:krb5p")
if results.failed:
    done()

with server_folder("krb") as folder:
    # Each flavour, and each way in which NFS puts data, if not each with each.
    some = (("3", "krb5i"), ("4.2", "krb5"), ("4.2", "krb5p"))
    for vers, flavour in itertools.product(VERSIONS, FLAVOURS) if LONG else some:
        there(vers, flavour, folder)
        back(vers, flavour, folder)

    with check("the server wants privacy: no other flavour gets in"):
        export("krb5p")
        for flavour in ("sys", "krb5", "krb5i"):
            os.makedirs("/mnt/a", exist_ok=True)
            status, text = run("mount", "-t", "nfs", "-o", options("4.2", f"sec={flavour}"),
                               f"server:{EXPORT}", "/mnt/a", ok=False)
            if status == 0:
                run("umount", "/mnt/a")
            expect(status, f"mounted with sec={flavour}")
        with secure("4.2", "krb5p") as at:
            expect("krb" in os.listdir(at), "the directory is not there")
    with check("exports as before"):
        export("sys:krb5:krb5i:krb5p")

    with check("a user without a ticket gets nothing, with one its own identity"), \
            secure("4.2", "krb5p") as at:
        status, text = as_alice(f"echo hello >{at}/krb/alice")
        expect(status, "a file was made without a ticket")
        status, text = as_alice("echo secret | kinit alice")
        equal(status, 0, f"kinit ({text})")
        status, text = as_alice(f"echo hello >{at}/krb/alice")
        equal((status, text), (0, ""), "writing with a ticket")
        equal(on_server(f"stat -c %u {folder}/alice; cat {folder}/alice"), "1000\nhello\n", "file")

    for flavour, visible in (("krb5", True), ("krb5i", True), ("krb5p", False)):
        with check(f"{flavour}: names and data can {'be read' if visible else 'not be read'} "
                   "on the wire"):
            if NODES == 1:
                raise Skip("within one guest no packet reaches a network device")
            equal(on_the_wire(flavour), (visible, visible), "name, data seen")

CUTS = (("4.2", "krb5p", 15, ""), ("3", "krb5p", 15, ""), ("4.2", "krb5i", 15, ""),
        ("4.1", "krb5p", 2, ""), ("3", "krb5p", 5, "timeo=30"))
for vers, flavour, seconds, extra in CUTS if LONG else CUTS[:1]:
    with check(f"v{vers} {flavour}{extra and ' ' + extra}: link down for {seconds} s "
               "in the middle of copies", 300):
        interrupted(vers, flavour, seconds, extra, breaks=seconds > 2 and RDMA != "siw")

with check("krb5p: encrypted calls stay until the server cannot read them", 240):
    unlike("client", "the C transport does not promise that")
    if NODES == 1:
        raise Skip("one guest has no cable")
    if RDMA == "siw":
        raise Skip("TCP lives on, and late replies let pages go too: these cannot be told apart here")
    kept_pages()

with check("Kerberos is switched off"):
    export("")
    on_server("kerberos-down")
    if NODES == 2:
        run("kerberos-down")
done()
