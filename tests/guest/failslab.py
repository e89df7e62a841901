# SPDX-License-Identifier: GPL-2.0
"""Allocations below the transport's code fail, one at a time: errors, but no harm, and it works after.

Needs a kernel with CONFIG_FAILSLAB, CONFIG_FAIL_PAGE_ALLOC and their filter for stack traces: that of
`make debug`. An allocation counts if the module's code is on the stack, so those that the RDMA core makes for
it do, too. Objects of slabs fail, and pages, as message buffers and long tables are made of them.

Which ones fail: a look at what is allocated tells the places, each a way through the module's code to an
allocator; at each place the first one fails. A place that failed in one check is not tried in another. With
LONG, all allocations of slabs fail too, one after the other, however often a place is met.

    failslab.py places    print the places that are in the trace buffer of this machine, as JSON
"""

import concurrent.futures
import errno
import itertools
import json
import os
import re
import sys

from lib import *

TRACING = "/sys/kernel/tracing"
# What can fail, where that is set, and how many in a row do: a table for which there are no pages in a row
# is made of single pages, which the kernel asks for twice.
FAIL = {"slab": ("/sys/kernel/debug/failslab", 1), "page": ("/sys/kernel/debug/fail_page_alloc", 4)}
SETTINGS = {"probability": 0, "task-filter": "N", "ignore-gfp-wait": "N", "cache-filter": "N",
            "ignore-gfp-highmem": "N", "min-order": 0, "verbose": 1, "verbose_ratelimit_interval_ms": 0,
            "space": 0, "stacktrace-depth": 32, "times": 0, "interval": 1000000}
# What shows allocations: calls of allocators by modules; by Rust, by way of functions of the kernel's; pages
# that are neither of a process nor of a slab that can shrink. (Below 0xffffffffa0000000 there are no modules.)
SHOWN = {"kmem/kmalloc": "call_site >= 0xffffffffa0000000",
         "kmem/kmem_cache_alloc": "call_site >= 0xffffffffa0000000",
         "kmem/mm_page_alloc": "migratetype == 0",
         "kprobes/failslab_k": "size > 0", "kprobes/failslab_kv": "size > 0"}
PROBES = {"failslab_k": "krealloc_node_align_noprof", "failslab_kv": "kvrealloc_node_align_noprof"}
# Pages for these are no allocation of the module's. (A slab needs one when it is used up, which is not met again.)
OTHERS = re.compile("slab|sheaf|stack_depot|kasan_|kmemleak")
# What comes from outside: what was at work until then has nothing to do with what is allocated inside.
INTERRUPT = re.compile("handle_softirqs|common_interrupt|sysvec_")
SIZE = 160 << 10
# So often at most the work is done until an allocation fails.
TRIES = 6
LIMIT = 3600 if LONG else 900
# Places that have failed.
tried = {"client": set(), "server": set()}
# Where, on some way there, an allocation has failed.
sites = {"client": set(), "server": set()}


def shell_of(side):
    if side == "server":
        return on_server
    return on_client if ON_SERVER else lambda c: run("sh", "-c", c, timeout=120)


def spoken(symbol):
    """A mangled name of Rust, as far as it can be told without much ado: the path at its beginning."""
    words, at = [], 2
    while symbol.startswith("_R") and at < len(symbol) and len(words) < 5:
        skip = re.compile(r"Cs[0-9A-Za-z]+_|B[0-9A-Za-z]*_|s[0-9A-Za-z]*_(?=[0-9A-Z])").match(symbol, at)
        name = re.compile(r"(\d+)_?").match(symbol, at)
        if skip:
            at = skip.end()
        elif name:
            at = name.end() + int(name[1])
            words.append(symbol[name.end():at])
        else:
            at += 1
    return "::".join(words) or symbol


def code(symbols):
    """Where the module's code lies, which its lines of kallsyms tell."""
    starts = sorted(int(words[0], 16) for words in map(str.split, symbols) if words[1] in "tT")
    return starts[0], starts[-1] + 4096


def code_on(shell):
    """The same on the side of this shell."""
    return code(shell("grep \"[[]$MODULE\"] /proc/kallsyms").splitlines())


def places():
    """What is in the trace: [kind, [[address, function], ...]], the module's frames from the allocator on."""
    first, end = code(run("grep", f"[[]{MODULE}]", "/proc/kallsyms").splitlines())
    found, kind, frames = {}, None, []

    def close():
        inside = itertools.takewhile(lambda frame: not INTERRUPT.search(frame[1]), frames)
        ours = [[address, name] for address, name in inside if first <= address < end]
        strange = kind == "page" and any(OTHERS.search(name) for _, name in frames)
        if ours and not strange:
            found[kind, tuple(address for address, _ in ours)] = ours
        frames.clear()

    with open(f"{TRACING}/trace") as lines:
        for line in lines:
            frame = re.match(r" => (\S+) <([0-9a-f]+)>", line)
            event = re.search(r" (kmalloc|kmem_cache_alloc|mm_page_alloc|failslab_kv?): ", line)
            if frame:
                frames.append((int(frame[2], 16), frame[1]))
            elif event:
                close()
                kind = "page" if event[1] == "mm_page_alloc" else "slab"
        close()
    return [[kind, ours] for (kind, _), ours in found.items()]


class Place:
    """A way through the module's code to an allocator."""

    def __init__(self, kind, frames, all_frames):
        # Shared ends of many ways say little: the frame that is on the fewest ways is looked for.
        self.address = min((address for address, _ in frames), key=all_frames.count)
        self.kind, self.key = kind, (kind, self.address)
        names = [spoken(name) for _, name in frames]
        # The call of the allocator, and what generic code is between that and ours.
        depth = next((n for n, name in enumerate(names) if name.startswith(MODULE)), len(names))
        self.site = kind, tuple(address for address, _ in frames[:depth + 1])
        mine = [name.removeprefix(MODULE + "::") for name in names if name.startswith(MODULE)]
        self.name = " < ".join(list(dict.fromkeys(mine or names))[:3])


def places_of(side, work):
    """Where the module allocates on this side while work() is done."""
    shell = shell_of(side)
    shell(f"set -e; mountpoint -q {TRACING} || mount -t tracefs none {TRACING}; cd {TRACING}; echo 0 >tracing_on; "
          "echo >trace; echo 24576 >buffer_size_kb; echo 1 >options/stacktrace; echo 1 >options/sym-addr; "
          + "".join(f"echo 'p:{name} {function} size=%si:u64' >>kprobe_events; "
                    for name, function in PROBES.items())
          + "".join(f"echo '{words}' >events/{event}/filter; echo 1 >events/{event}/enable; "
                    for event, words in SHOWN.items()) + "echo 1 >tracing_on")
    try:
        equal(work(0), None, "error, with no allocation failing")
    finally:
        shell(f"cd {TRACING}; echo 0 >tracing_on; " + "".join(f"echo 0 >events/{event}/enable; "
                                                              for event in SHOWN))
        lost = re.findall(r"(?m)^(?:overrun|dropped events): (\d+)", shell(f"cat {TRACING}/per_cpu/cpu*/stats"))
        text = shell("cd /run/payload/tests/guest && python3 failslab.py places")
        shell(f"cd {TRACING}; echo 0 >options/stacktrace; echo 0 >options/sym-addr; echo >trace; "
              + "".join(f"echo '-:{name}' >>kprobe_events; " for name in PROBES)
              + "echo 1 >buffer_size_kb; echo 1 >tracing_on")
    equal(sum(map(int, lost)), 0, "events that were lost")
    found = json.loads(text)
    every = [address for _, frames in found for address, _ in frames]
    # If a way goes on from where another one ends, the first allocation on either fails.
    return list({place.key: place for place in (Place(*one, every) for one in found)}.values())


class Faults:
    """Failures of one kind below the module's code on one side."""

    def __init__(self, side, kind):
        self.shell, (self.dir, self.times) = shell_of(side), FAIL[kind]
        self.shell(f"cd {self.dir}; " + "; ".join(f"[ ! -e {name} ] || echo {value} >{name}"
                                                   for name, value in SETTINGS.items()))
        if kind == "page":
            # What a slab is made of fails as an object of it.
            first, after = (line.split()[0] for line in
                            self.shell("grep -A1 ' allocate_slab$' /proc/kallsyms").splitlines())
            self.shell(f"cd {self.dir}; echo 0x{first} >reject-start; echo 0x{after} >reject-end")

    def arm(self, place):
        """The first allocation at this place from now on is to fail."""
        self.shell(f"cd {self.dir}; echo {place.address:#x} >require-start; "
                   f"echo {place.address + 1:#x} >require-end; echo 1 >interval; echo {self.times} >times; "
                   "echo 100 >probability")

    def stop(self):
        """No allocation is to fail from now on. Has one?"""
        return int(self.shell(f"cd {self.dir}; echo 0 >probability; cat times")) < self.times


SLAB = FAIL["slab"][0]


class Walk:
    """One allocation after the other below the module's code on one side."""

    # How many allocations each side's kernel has counted so far: a multiple of the interval fails.
    count = {"client": 0, "server": 0}

    def __init__(self, side):
        self.shell, self.side = shell_of(side), side
        Faults(side, "slab")
        # Where the module's code lies; its symbols tell how far it goes.
        first, end = code_on(self.shell)
        self.shell(f"echo {first:#x} >{SLAB}/require-start; echo {end:#x} >{SLAB}/require-end")

    def arm(self, number):
        """The allocation with this number from now on is to fail, that one only."""
        self.interval = self.count[self.side] + number
        self.resume()

    def resume(self):
        self.shell(f"echo {self.interval} >{SLAB}/interval; echo 1 >{SLAB}/times; "
                   f"echo 100 >{SLAB}/probability")

    def stop(self):
        """No allocation is to fail from now on. Has it failed?"""
        left = self.shell(f"echo 0 >{SLAB}/probability; cat {SLAB}/times").strip()
        if left == "0" and self.interval > 1:
            self.count[self.side] = self.interval
        return left == "0"


def use(at, number):
    """Work that needs all kinds of messages; what is read back must be what was written."""
    data = random_bytes(SIZE, number)
    path = f"{at}/failslab/f"
    write_file(path, data, direct=number % 2 == 0)
    expect(read_file(path, direct=True) == data, "data differ")
    os.listdir(f"{at}/failslab")
    # NFSv3 has no pages for the reply: the transport makes them.
    try:
        os.getxattr(path, "system.posix_acl_access")
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise


def crowd(at, number):
    """More calls at once than there are memory regions at first."""
    data = random_bytes(SIZE, number)
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda n: write_file(f"{at}/failslab/{n}", data, direct=True), range(24)))
    for n in range(24):
        expect(read_file(f"{at}/failslab/{n}", direct=True) == data, f"data of file {n} differ")


def attempt(vers, number, use=use):
    """Mount, use and unmount, or an error: which?"""
    at = "/mnt/a"
    os.makedirs(at, exist_ok=True)
    status, text = run("mount", "-t", "nfs", "-o", options(vers) + ",retry=0", f"{SERVER}:{EXPORT}", at,
                       ok=False, timeout=90)
    if status:
        return text.strip().splitlines()[-1]
    try:
        use(at, number)
    except OSError as error:
        return f"error {error}"
    finally:
        umount(at)
    return None


def each_place(side, work):
    """work(number) with each place failing once that was not tried before; the errors."""
    found = places_of(side, work)
    new = [place for place in found if place.key not in tried[side]]
    expect(found, "no place was seen")
    if not (new or LONG):
        raise Skip(f"an allocation has failed at each of the {len(found)} places before")
    faults = {kind: Faults(side, kind) for kind in FAIL}
    errors = []
    for place in new:
        # What depends on time may not be met the first time.
        for number in range(TRIES):
            faults[place.kind].arm(place)
            try:
                error = work(number)
            finally:
                fired = faults[place.kind].stop()
            if fired:
                tried[side].add(place.key)
                sites[side].add(place.site)
                break
            # Nothing has failed on purpose.
            equal(error, None, f"error on the way to {place.name}")
        say(f"{place.kind} {place.name}: {error or 'no error' if fired else 'not met again'}")
        if error:
            errors.append(error)
            # With that allocation there, all is as it was.
            equal(work(number + 1), None, f"error after an allocation failed at {place.name}")
    left = [place for place in new if place.key not in tried[side]]
    say(f"{len(found)} places, {len(new)} of them not tried before, at {len(new) - len(left)} an allocation failed")
    # Some ways are rare, as what is free when a connection breaks is a matter of time.
    known = [place.name for place in left if place.site in sites[side]]
    left = [place.name for place in left if place.site not in sites[side]]
    say(f"not met in {TRIES} tries, but the same call of the allocator failed on other ways: {known}")
    if FLAVOURS[side] == "rust":
        equal(left, [], f"places that were not met in {TRIES} tries")
    else:
        # A buffer of the C client grows once.
        say(f"not met in {TRIES} tries, of the C module: {left}")
    return errors


def walk(side, work):
    """The same for each place, and with LONG for each number of an allocation."""
    if FLAVOURS[side] == "c" and "rust" in FLAVOURS.values():
        raise Skip("what the C module then leaks would be there at the end: only with C modules on both ends")
    errors = each_place(side, work)
    return errors + each_number(side, work) if LONG else errors


def each_number(side, work):
    """work(number) with one allocation failing, until there are no more; how many, and the errors."""
    steps = Walk(side)
    errors = []
    for failed, number in enumerate(itertools.count(1)):
        steps.arm(number)
        try:
            error = work(number)
        finally:
            fired = steps.stop()
        if error:
            errors.append(f"{number}: {error}")
        if not fired:
            break
        # With that allocation there, all is as it was.
        if error:
            equal(work(number + 1), None, f"error after allocation {number} failed once")
    # The kernel's count has to be known for the next walk.
    for again in range(20):
        steps.resume()
        work(again)
        if steps.stop():
            break
    else:
        raise Failed("no allocation fails any more")
    say(f"{failed} allocations failed, fewer than {number} are made; {len(errors)} times with an error")
    for text in errors[:20]:
        say(text)
    expect(failed >= 5, "hardly any allocation failed")
    return errors


def reconnect(at):
    """Work on a mount whose connection breaks in the middle of it."""
    def work(number):
        before = xprt_stats(at)["connect_count"]
        for name, value in {"ignore-client-disconnect": "N", "ignore-server-disconnect": "Y",
                            "ignore-cache-wait": "Y", "verbose": 0, "interval": 1, "times": 1,
                            "probability": 100}.items():
            write(f"/sys/kernel/debug/fail_sunrpc/{name}", str(value))
        try:
            use(at, number)
        except OSError as error:
            return str(error)
        finally:
            write("/sys/kernel/debug/fail_sunrpc/probability", "0")
        expect(xprt_stats(at)["connect_count"] > before, "the connection was not broken")
    return work


def unfinished():
    """sunrpc has a transport for callbacks made, and then has no memory for its name: it destroys the transport,
    whoever knows of it by then."""
    unlike("server", "sunrpc frees what the server's transport still points to (upstream-findings.md)", deadly=True)
    shell = shell_of("server")
    Faults("server", "slab")
    symbols = sorted(shell("grep '[[]sunrpc]' /proc/kallsyms").splitlines())
    at = [line.split()[2] for line in symbols].index("xprt_create_transport")
    first, after = (symbols[n].split()[0] for n in (at, at + 1))
    begin, end = code_on(shell)
    shell(f"cd {SLAB}; echo 0x{first} >require-start; echo 0x{after} >require-end; echo {begin:#x} >reject-start; "
          f"echo {end:#x} >reject-end; echo 1 >interval; echo 1 >times; echo 100 >probability")
    try:
        with mounted("4.2") as at:
            use(at, 0)
            left = shell(f"echo 0 >{SLAB}/probability; cat {SLAB}/times").strip()
            equal(left, "0", "allocations left to fail")
            # The client is told that it cannot be called, and asks again.
            use(at, 1)
            can_be_called()
    finally:
        shell(f"cd {SLAB}; echo 0 >probability; echo 0 >reject-start; echo 0 >reject-end")
    equal(attempt("4.2", 2), None, "error after that")


if sys.argv[1:] == ["places"]:
    print(json.dumps(places()))
    sys.exit()
if not all(os.path.isdir(where) for where, _ in FAIL.values()):
    with check("allocations fail"):
        without_checkers("failslab or fail_page_alloc")
else:
    with server_folder("failslab"):
        for vers in ("3", "4.2"):
            with check(f"v{vers}: mount, work and unmount while allocations of the client fail", LIMIT):
                walk("client", lambda number: attempt(vers, number))
        with check("v4.2: mount, work and unmount while allocations of the server fail", LIMIT):
            walk("server", lambda number: attempt("4.2", number))
        with check("v4.2: sunrpc cannot complete the server's transport for callbacks", LIMIT):
            unfinished()
        for side in ("client", "server"):
            with check(f"v3: many calls at once while allocations of the {side} fail", LIMIT):
                walk(side, lambda number: attempt("3", number, crowd))
        with mounted("4.2") as at:
            for side in ("client", "server"):
                with check(f"v4.2: a broken connection, and allocations of the {side} fail", LIMIT):
                    errors = walk(side, reconnect(at))
                    if side == "server" and os.environ["SERVER_FLAVOUR"] != "rust":
                        # Without memory for a list of chunks the C server says that the call makes no sense.
                        errors = [text for text in errors if "[Errno 5]" not in text]
                    # A hard mount shows no error, but waits and tries again.
                    equal(errors, [], "errors")
done()
