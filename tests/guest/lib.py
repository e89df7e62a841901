# SPDX-License-Identifier: GPL-2.0
"""What the guest tests share: checks in TAP form, mounts, the server, the transport's statistics.

A test file ends with done(), which gives the exit status of kselftest: 0 passed, 1 failed, 4 skipped.
"""

import contextlib
import ctypes
import glob
import hashlib
import mmap
import os
import re
import socket
import subprocess
import sys
import threading
import time
import traceback

if "SERVER" not in os.environ:
    print("1..0 # SKIP the variables that scripts/vm sets are not there")
    sys.exit(4)
SERVER, SERVER6 = os.environ["SERVER"], os.environ["SERVER6"]
NODES = int(os.environ["NODES"])
LONG = "LONG" in os.environ
# What the C module makes of checks and devices that it is not expected to cope with is asked, too.
COMPARE = "COMPARE" in os.environ
# Which module each side has, ours or C.
FLAVOURS = {"client": os.environ["CLIENT"], "server": os.environ["SERVER_FLAVOUR"]}
MODULE = os.environ["MODULE"]
RDMA = os.environ["RDMA"]
NETDEV = os.environ["NETDEV"]
# How much longer everything takes here: limits of time are so many times what the tests say.
SLOWNESS = int(os.environ.get("SLOWNESS", 1))
ON_SERVER = os.environ["ROLE"] == "server"
PORT = 20049
EXPORT = "/export/tmp"
VERSIONS = ("3", "4.0", "4.1", "4.2")
# Jiffies in a second, on Debian kernels.
HZ = 250
libc = ctypes.CDLL(None, use_errno=True)


# --- checks -------------------------------------------------------------------------------------


class Skip(Exception):
    """This check cannot be made here; the reason is shown."""


def unlike(side, reason, deadly=False):
    """Skip a check that the C module on that side is not expected to pass: tests/run --compare asks it all the same,
    if its kernel survives that."""
    if FLAVOURS[side] == "c" and (deadly or not COMPARE):
        raise Skip(reason)


def without_checkers(what):
    """Skip a check for which the kernel lacks something that the debug kernel has to have."""
    expect(SLOWNESS == 1 or os.path.exists("/sys/kernel/debug/kcsan"), f"this kernel should have {what}")
    raise Skip(f"the kernel has no {what}")


class Failed(Exception):
    """What was expected and what came instead."""


class results:
    count = failed = skipped = 0
    next = None
    # A test's function that leaves in /out what has led to a failure; it is told why.
    keep = None


def say(text):
    sys.stdout.write("".join(f"# {line}\n" for line in str(text).splitlines()))
    sys.stdout.flush()


def kernel_log(text):
    """Mark the place in the kernel log, where console trouble would show."""
    with open("/dev/kmsg", "w") as f:
        f.write(f"test: {text}\n")


def verdict(name, ok, directive=""):
    results.count += 1
    results.failed += not ok
    print(f"{'ok' if ok else 'not ok'} {results.count} - {name}{directive}", flush=True)


def keep(why):
    """A check has failed, or hangs: leave behind what the test has for that."""
    try:
        if results.keep:
            results.keep(why)
            # Now, as at the end: if the other machine is gone, this one may not get there.
            run("tar", "-C", "/out", "-cf", "/dev/vdd", ".")
    except Exception:
        # The verdict matters more.
        say(traceback.format_exc())


def stuck():
    """The kernel log tells where tasks wait."""
    write("/proc/sysrq-trigger", "w")


def alarm(seconds, act):
    """Does that then, if it is not cancelled."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    return timer


def between(last):
    """What is done between checks has no limit of its own: say that it takes long, which fails the run.

    (For scripts/vm, stacks on the console are trouble.)
    """
    def long():
        say(f"no check begins for {120 * SLOWNESS} s after {last}; where tasks wait is in the kernel log")
        stuck()

    results.next = alarm(120 * SLOWNESS, long)


@contextlib.contextmanager
def check(name, limit=120):
    """One named check: passed if the body ends without an exception, within `limit` seconds."""
    limit *= SLOWNESS

    def hung():
        # The main thread may sit in a sleep that only death ends.
        say(f"{name}: no end after {limit} s; where tasks wait is in the kernel log")
        verdict(name, False)
        stuck()
        keep(f"{name}: no end")
        print("Bail out! a check hangs", flush=True)
        os._exit(1)

    if results.next:
        results.next.cancel()
    kernel_log(name)
    timer = alarm(limit, hung)
    begun = time.monotonic()
    try:
        yield
    except Skip as skip:
        results.skipped += 1
        verdict(name, True, f" # SKIP {skip}")
    except Exception as error:
        if isinstance(error, (Failed, OSError, subprocess.SubprocessError)):
            say(f"{type(error).__name__}: {error}")
        else:
            say(traceback.format_exc())
        keep(f"{name}: {error}")
        verdict(name, False)
    else:
        if time.monotonic() - begun > 10:
            say(f"took {time.monotonic() - begun:.0f} s")
        verdict(name, True)
    finally:
        timer.cancel()
        between(name)


def expect(condition, text):
    if not condition:
        raise Failed(text)


def equal(got, wanted, what):
    expect(got == wanted, f"{what}: {got!r} instead of {wanted!r}")


def done():
    with check("nothing is left mounted"):
        left = nfs_mounts()
        for path in left:
            subprocess.run(["umount", "-f", "-l", path])
        expect(not left, f"still mounted: {' '.join(left)}")
    print(f"1..{results.count}", flush=True)
    # The mark of tests/guest/run.
    with contextlib.suppress(FileNotFoundError):
        os.unlink("/run/unfinished")
    if results.failed:
        sys.exit(1)
    sys.exit(4 if results.skipped == results.count - 1 else 0)


# --- commands and files -------------------------------------------------------------------------


def run(*argv, timeout=60, ok=True):
    """Run a command, return its output; with ok=False return (status, output)."""
    p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       timeout=timeout * SLOWNESS, stdin=subprocess.DEVNULL, text=True, errors="replace")
    if not ok:
        return p.returncode, p.stdout
    if p.returncode:
        raise Failed(f"{' '.join(argv)}: status {p.returncode}: {p.stdout.strip()}")
    return p.stdout


def on_server(command, timeout=120):
    return run("on-server", command, timeout=timeout)


def on_client(command, timeout=120):
    return run("on-client", command, timeout=timeout)


def read(path):
    with open(path) as f:
        return f.read()


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds * SLOWNESS
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"after {seconds * SLOWNESS} s still not: {what}")
        time.sleep(0.1)


def steady(look, times):
    """What `look` finds when it has found the same so many times in a row, a second apart."""
    looks = []
    while len(looks) < times or any(found != looks[-1] for found in looks[-times:]):
        time.sleep(1)
        looks.append(look())
    return looks[-1]


def buffer(data):
    """The bytes at a page boundary, as direct I/O wants them."""
    m = mmap.mmap(-1, max(len(data), 1))
    m[:len(data)] = data
    return memoryview(m)[:len(data)]


def write_file(path, data, direct=False, block=1 << 20):
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_DIRECT if direct else 0)
    view = buffer(data) if direct else memoryview(data)
    fd = os.open(path, flags, 0o644)
    try:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:done + block])
        os.fsync(fd)
    finally:
        os.close(fd)


def read_file(path, direct=False, block=1 << 20):
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        if not direct:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        parts, at = [], 0
        room = memoryview(mmap.mmap(-1, block))
        while True:
            got = os.preadv(fd, [room], at)
            if not got:
                return b"".join(parts)
            parts.append(bytes(room[:got]))
            at += got
    finally:
        os.close(fd)


def sha(data):
    return hashlib.sha256(data).hexdigest()


def server_sums(folder):
    """sha256 of every file of a directory, as the server sees it: {name: sum}."""
    lines = on_server(f"cd {folder} && sha256sum -- *", timeout=300).splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


_random = b""


def random_bytes(size, seed=0):
    """Bytes without a pattern: `size` of them, different for each small `seed`."""
    global _random
    if len(_random) < size + 4096 * 8:
        _random = os.urandom(size + 4096 * 8)
    start = seed * 37 % 4096
    return _random[start:start + size]


# --- mounts -------------------------------------------------------------------------------------


def nfs_mounts():
    return [line.split()[1] for line in read("/proc/mounts").splitlines()
            if line.split()[2] in ("nfs", "nfs4")]


def options(vers, extra=""):
    text = f"vers={vers},proto=rdma,port={PORT}"
    if vers == "3":
        text += ",nolock,mountproto=tcp"
    return text + ("," + extra if extra else "")


def mount(vers, extra="", at="/mnt/a", server=SERVER, export=EXPORT, opts=None, timeout=90):
    os.makedirs(at, exist_ok=True)
    host = f"[{server}]" if ":" in server else server
    try:
        run("mount", "-t", "nfs", "-o", opts or options(vers, extra), f"{host}:{export}", at,
            timeout=timeout)
    except Failed as error:
        if "Stale" in str(error):
            # Seen once, without a reason: which handle does the server not know?
            say(on_server("grep . /proc/net/rpc/nfsd.*/content; cat /var/lib/nfs/etab"))
        if "denied" in str(error) and "sec=krb5" in extra:
            # Seen three times in some 850 mounts. Traces of two had rpcgss_upcall_result=-13 and no rpcgss_upcall_msg
            # before it: the kernel did not ask rpc.gssd, as it had no pipe open. kerberos-up waits for that now.
            for command in (on_server, on_client):
                say(command("tail -n 60 /sys/kernel/tracing/trace | cut -c 24-200; ps ax | grep gssd; "
                            "ls -l /proc/$(pidof rpc.gssd)/fd; true"))
        raise
    return at


def umount(at="/mnt/a", timeout=60):
    run("umount", at, timeout=timeout)


# Taints of a kernel in trouble, as in scripts/vm: bad memory, died, warned, soft lockup.
TAINTS = 1 << 5 | 1 << 7 | 1 << 9 | 1 << 14
TRUST = "/proc/sys/sunrpc/rdma_trust_servers"


@contextlib.contextmanager
def trusting():
    """Connections made here believe the server's invalidations, as they do on devices that are not
    software. (The C module always does, and has no such setting.)"""
    if os.path.exists(TRUST):
        write(TRUST, "1")
    try:
        yield
    finally:
        if os.path.exists(TRUST):
            write(TRUST, "0")


@contextlib.contextmanager
def patient(seconds):
    """Here the kernel does not tell of who sleeps for less than that: writers may, in this test."""
    limit = "/proc/sys/kernel/hung_task_timeout_secs"
    usual = read(limit)
    write(limit, str(seconds * SLOWNESS))
    try:
        yield
    finally:
        write(limit, usual)


@contextlib.contextmanager
def mounted(vers, extra="", at="/mnt/a", **more):
    """`with mounted("4.2") as path`: mounted within the body, unmounted in any case."""
    mount(vers, extra, at, **more)
    try:
        yield at
    except BaseException:
        subprocess.run(["umount", "-f", "-l", at])
        raise
    umount(at)


@contextlib.contextmanager
def server_folder(name):
    """A fresh directory of the export, removed at the end."""
    path = f"{EXPORT}/{name}"
    on_server(f"rm -rf {path}; mkdir -m 777 {path}")
    try:
        yield path
    finally:
        on_server(f"rm -rf {path}")


def can_be_called(address=".*"):
    """Waits until the server has tried its way to call clients with that address, or any: it delegates
    nothing before."""
    wait_for(lambda: "UP" in on_server(f"""
        for c in /proc/fs/nfsd/clients/*; do
            grep -q 'address: "{address}:' $c/info && grep 'callback state' $c/info
        done 2>/dev/null; true"""), 60, "the server can call the client")


@contextlib.contextmanager
def leases():
    """A function that starts nfsd anew with another lease time; at the end it has the first again."""
    conf = "/etc/nfs.conf"
    old = on_server(f"sed -n 's/^[[:space:]]*lease-time=//p' {conf}").strip()

    def last(seconds):
        on_server(f"nfsd-down; sed -i 's/lease-time=.*/lease-time={seconds}/' {conf}; nfsd-up")
        equal(on_server("cat /proc/fs/nfsd/nfsv4leasetime").strip(), str(seconds), "lease of the server")
    try:
        yield last
    finally:
        last(old)


# --- what the transport shows -------------------------------------------------------------------

XPRT_FIELDS = (
    "port bind_count connect_count connect_time idle_time sends recvs bad_xids req_u bklog_u "
    "read_chunk_count write_chunk_count reply_chunk_count total_rdma_request total_rdma_reply "
    "pullup_copy_count fixup_copy_count hardway_register_count failed_marshal_count "
    "bad_reply_count nomsg_call_count mrs_recycled mrs_orphaned mrs_allocated local_inv_needed "
    "empty_sendctx_q zero").split()


def mountstats(at):
    """What mountstats has on one mount."""
    parts = re.split(r"(?m)^device ", read("/proc/self/mountstats"))[1:]
    mine = [p for p in parts if f" mounted on {at} " in p.splitlines()[0]]
    expect(mine, f"mountstats has nothing on {at}")
    return mine[-1]


def xprt_lines(at="/mnt/a"):
    """The `xprt:` lines of one mount in mountstats."""
    return re.findall(r"(?m)^\txprt:.*$", mountstats(at))


def transmissions(at="/mnt/a"):
    """How often calls of each procedure were sent for one mount."""
    return {name: int(n) for name, n in re.findall(r"(?m)^\t *(\w+): \d+ (\d+) \d+ \d+ ", mountstats(at))}


def xprt_stats(at="/mnt/a"):
    """The statistics of the mount's transports, added up."""
    total = dict.fromkeys(XPRT_FIELDS, 0)
    for line in xprt_lines(at):
        words = line.split()
        equal(words[:2], ["xprt:", "rdma"], "beginning of the xprt line")
        equal(len(words) - 2, len(XPRT_FIELDS), "numbers in the xprt line")
        for name, value in zip(XPRT_FIELDS, words[2:]):
            total[name] += int(value)
    return total


def sends(at):
    """How many messages each of the mount's transports has sent."""
    return [int(line.split()[2 + XPRT_FIELDS.index("sends")]) for line in xprt_lines(at)]


def transports(address=SERVER):
    """Directories in sysfs of the transports to the server's RDMA port."""
    found = glob.glob("/sys/kernel/sunrpc/xprt-switches/switch-*/xprt-*-rdma")
    return [d for d in sorted(found) if read(d + "/dstaddr").strip() == address]


def nfsfs(file):
    """Version, address and port of what /proc/fs/nfsfs/servers or volumes lists, as it is written there."""
    return sorted(re.findall(r"(?m)^v(\d) (\S+) (.{4}) ", read("/proc/fs/nfsfs/" + file)))


def hexadecimal(address, port):
    """How that has them: sunrpc's two strings in hexadecimal."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_pton(family, address).hex(), f"{port:4x}"


def use_count():
    """How often the module is in use, None if it is not loaded."""
    try:
        return int(read(f"/sys/module/{MODULE}/refcnt"))
    except FileNotFoundError:
        return None


def rdma_objects(kind):
    """RDMA objects of this kind on this machine that are not the CM's own: list of lines."""
    return run("rdma", "resource", "show", kind).splitlines()


CONNECTIONS = "/sys/kernel/debug/rpcrdma_rust/connections"


def connections(peer, text):
    """What our module shows of its connections to a `server`, or a `client`: a dictionary for each."""
    found = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in text.splitlines()]
    return [words for words in found if peer in words]


def queue_pairs(text):
    """The numbers of queue pairs, by what `rdma resource show qp` printed."""
    return set(re.findall(r" lqpn (\d+) ", text))


# Shell: waits until the device is unregistered, so that who used it has let go of it. (`rdma link` hides it before.)
AWAIT_GONE = (f"n=0; while [ -e /sys/class/infiniband/{RDMA}0 ]; do [ $n -lt {400 * SLOWNESS} ] || exit 1; "
              "sleep 0.1; n=$((n + 1)); done")


def link(state, node="server"):
    """Pull out or plug in the RDMA network's cable of a node."""
    if NODES == 1:
        # Taking the one device down puts rxe's GSI queue pair in the error state for good.
        raise Skip("one guest has no cable")
    run("on-host", f"link {node} {state}")
    if state == "up":
        mend()


def mend():
    """Make an RDMA device anew whose queue pair for connecting is in error: rxe leaves it so when the network
    refused a packet of it, and nothing connects any more (Documentation/upstream-findings.md). Says so, and
    returns on how many sides that was."""
    count = 0
    for side, command in (("here", lambda text: run("sh", "-c", text)), ("on the server", on_server)):
        if re.search(r"type GSI state ERR", command("rdma resource show qp")):
            command(f"rdma link delete {RDMA}0; rdma link add {RDMA}0 type {RDMA} netdev $NETDEV")
            say(f"the device {side} is made anew: its queue pair for connecting was in error")
            count += 1
    return count


def unplug(seconds):
    """What pulls out the cable for some time."""
    def disturb():
        link("down")
        time.sleep(seconds)
        link("up")
    return disturb
