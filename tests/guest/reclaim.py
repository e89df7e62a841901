# SPDX-License-Identifier: GPL-2.0
"""What files are written with does not wait for files to be written (bug class 21).

To free memory the kernel writes files, by RPC too. What a connection needs is made by work items; one
that asks for memory, and for which the kernel then writes to the server, waits for itself. So does a thread
of nfsd that has a device which is about to go, if the files are those of a mount over that device. lockdep
takes note of every allocation that may go that way, as if it took a lock named fs_reclaim, whether
memory is short or not. So those notes, with the way that led there, are all that is looked at, while
a connection is made, lost, and made again. Only a kernel with lockdep has them.
"""

import concurrent.futures

from events import *
from lib import *

INSTANCE = f"{TRACING}/instances/reclaim"
EVENT = f"{INSTANCE}/events/lock/lock_acquire"
OURS = "rpcrdma_rust"
DATA = random_bytes(256 << 10)
# Who mounts may wait for files. That is how it is seen that there are notes at all.
WHO = 'name == "fs_reclaim" && (comm ~ "kworker*" || comm ~ "mount*" || comm ~ "*rpcrdma*" || comm ~ "*nfsd*")'


@contextlib.contextmanager
def noted(side):
    """Two lists, which have the ways to such allocations afterwards: those that came through our module, and others."""
    ways, others = [], []
    shell(side, f"mkdir -p {INSTANCE}; cd {INSTANCE}; echo 8192 >buffer_size_kb; echo >trace; "
                f"echo '{WHO}' >{EVENT}/filter; echo 1 >options/stacktrace; "
                f"echo 1 >{EVENT}/enable")
    try:
        yield ways, others
    finally:
        text = shell(side, f"cd {INSTANCE}; echo 0 >{EVENT}/enable; cat trace; cat per_cpu/cpu*/stats; "
                           f"cd ..; rmdir {INSTANCE}")
        expect(not re.search(r"(?m)^overrun: [1-9]", text), "there was no room for all notes")
        for stack in text.split("<stack trace>")[1:]:
            frames = re.findall(r"(?m)^ => (\S+)", stack)
            (ways if any(OURS in frame for frame in frames) else others).append(frames)


def theirs(ways):
    """The ways that begin with a work item, of any queue, or with nfsd, who makes connections and listeners."""
    return [frames for frames in ways
            if any(f.startswith(("worker_thread", "svc_", "_svc_", "nfsd")) for f in frames)]


def copied(at, name):
    write_file(f"{at}/reclaim/{name}", DATA, direct=True)
    expect(read_file(f"{at}/reclaim/{name}", direct=True) == DATA, "what was read back differs")


with check("work items and nfsd ask for no memory that file systems have to free", 600):
    if not os.path.exists(f"{TRACING}/events/lock/lock_acquire"):
        without_checkers("lockdep")
    sides = {"client": run, "server": on_server}
    if NODES == 1:
        del sides["server"]
    with server_folder("reclaim"), contextlib.ExitStack() as stack:
        notes = {name: stack.enter_context(noted(side)) for name, side in sides.items()}
        with mounted("3", "noac") as at:
            # As many at a time as want more regions than a connection begins with.
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda n: copied(at, f"f{n}"), range(16)))
            made = xprt_stats(at)["mrs_allocated"]
            on_server("nfsd-down; nfsd-up")
            copied(at, "again")
            connections = xprt_stats(at)["connect_count"]
    say(f"{connections} connections, {made} regions for the first")
    expect(connections >= 2, "no connection was made again")
    found = set()
    for name, (ways, others) in notes.items():
        say(f"{len(ways)} notes of the {name}'s machine with the module, {len(theirs(ways))} of work items and nfsd; "
            f"{len(others)} without it")
        expect(ways or others, f"lockdep has noted nothing at the {name}")
        found |= {"\n".join(frames) for frames in theirs(ways)}
    # A mount makes its transport in the context of whoever mounts.
    expect(notes["client"][0], "lockdep has noted nothing of a mount")
    for way in sorted(found):
        say(way + "\n\n")
    expect(not found, f"{len(found)} ways of work items and nfsd to file systems")
done()
