# SPDX-License-Identifier: GPL-2.0
"""Random work, and whatever can happen to a connection in the middle of it, for as long as is wanted.

    soak.py [--seconds N] [--seed S]

Four mounts, NFSv3 and v4.2, page cache and direct I/O. Each has a process that writes, reads, cuts and
renames files, with a copy of them in its memory that everything is compared with; at the end, what the
server has is. Both sides ask all the time what connections there are. Meanwhile, in an order that the
seed decides: cables are pulled (longer than a connection lasts, or not), connections ended, devices
removed on either side, nfsd restarted. After each of these all of the work has to go on. account.py, which
tests/run has before and after it, compares memory and RDMA objects.
"""

import argparse
import collections
import contextlib
import hashlib
import random
import signal
import subprocess

from lib import *

SIZE, FILES = 3 << 20, 4
KINDS = [(vers, direct) for vers in ("3", "4.2") for direct in (False, True)]
DELETE = f"rdma link delete {RDMA}0"
ADD = f"rdma link add {RDMA}0 type {RDMA} netdev {NETDEV}"


# --- one worker, in a process of its own ----------------------------------------------------------


def work(folder, progress, direct, seed):
    """Changes files and compares them with what they should be, until SIGTERM; then says what should be there."""
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    chance = random.Random(seed)
    noise = buffer(os.urandom(2 * SIZE))
    room = memoryview(mmap.mmap(-1, SIZE))
    files = {f"file-{n}": bytearray() for n in range(FILES)}
    note = os.open(progress, os.O_WRONLY)
    rounds = 0
    for name in files:
        os.close(os.open(f"{folder}/{name}", os.O_CREAT | os.O_RDWR, 0o644))
    while not over:
        name = chance.choice(list(files))
        copy, path = files[name], f"{folder}/{name}"
        kind = chance.randrange(10)
        flags = os.O_RDWR | (os.O_DIRECT if direct else 0)
        if kind < 8:
            fd = os.open(path, flags)
            start = chance.choice((0, chance.randrange(SIZE // 2), chance.randrange(64) * 4096, len(copy)))
            size = chance.choice((1, 4095, 4096, 65537, 300000, 1 << 20, chance.randrange(1 << 20)))
            if kind < 4:
                at = chance.randrange(SIZE)
                size = min(size, SIZE - start)
                done = 0
                while done < size:
                    done += os.pwrite(fd, noise[at + done:at + size], start + done)
                copy.extend(bytes(max(0, start + size - len(copy))))
                copy[start:start + size] = noise[at:at + size]
                if chance.random() < 0.5:
                    os.fsync(fd)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                wanted, got = bytes(copy[start:start + size]), 0
                while more := os.preadv(fd, [room[got:size]], start + got):
                    got += more
                    if got == size:
                        break
                if room[:got] != wanted:
                    sys.exit(f"round {rounds}: {path}, {size} bytes at {start}: {got} bytes read, not the "
                             f"{len(wanted)} written")
            os.close(fd)
        elif kind == 8:
            size = chance.randrange(SIZE)
            os.truncate(path, size)
            copy[:] = copy[:size] + bytes(max(0, size - len(copy)))
        else:
            new = f"{name.split('.')[0]}.{rounds}"
            # Without a session, a server that was restarted cannot know whether it has done this.
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, f"{folder}/{new}")
            files[new] = files.pop(name)
            names = sorted(os.listdir(folder))
            if names != sorted(files):
                sys.exit(f"round {rounds}: {folder} has {names}, not {sorted(files)}")
        if os.stat(f"{folder}/{list(files)[0]}").st_size != len(files[list(files)[0]]):
            sys.exit(f"round {rounds}: {list(files)[0]} has another size")
        rounds += 1
        os.pwrite(note, b"%d" % rounds, 0)
    # All of it was closed: the server has it, not the page cache alone.
    for name, copy in files.items():
        print(f"{hashlib.sha256(copy).hexdigest()}  {name}")


class Worker:
    def __init__(self, number, seed):
        vers, direct = KINDS[number]
        self.name = f"v{vers}{' direct' if direct else ''}"
        self.at, self.folder = f"/mnt/soak-{number}", f"{EXPORT}/soak-{number}"
        self.progress, self.log = f"/tmp/soak.{number}", f"/tmp/soak-log.{number}"
        write(self.progress, "0")
        on_server(f"rm -rf {self.folder}; mkdir -m 777 {self.folder}")
        mount(vers, "nosharecache", at=self.at)
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "work", f"{self.at}/soak-{number}", self.progress,
                 str(int(direct)), f"{seed}/{number}"], stdout=log, stderr=subprocess.STDOUT)

    def done(self):
        expect(self.process.poll() is None, f"the work of {self.name} ended: {read(self.log)[-700:]}")
        return int(read(self.progress) or 0)

    def end(self):
        """End the work, and compare what it says with what the server has."""
        self.process.terminate()
        try:
            self.process.wait(60 * SLOWNESS)
        finally:
            self.process.kill()
        equal(self.process.returncode, 0, f"status of the work of {self.name}: {read(self.log)[-700:]}")
        equal(sorted(on_server(f"cd {self.folder} && sha256sum *").splitlines()),
              sorted(read(self.log).splitlines()), f"files of {self.name} on the server")


if sys.argv[1:2] == ["work"]:
    sys.exit(work(sys.argv[2], sys.argv[3], sys.argv[4] == "1", sys.argv[5]))


# --- what happens ---------------------------------------------------------------------------------


def flap():
    node = chance.choice(("client", "server"))
    link("down", node)
    time.sleep(chance.choice((0.1, 1, 3, 8)) * chance.random())
    link("up", node)


def gone(command):
    command(DELETE)
    time.sleep(chance.choice((0, 1, 5)) * chance.random())
    command(ADD)


def client_device():
    gone(lambda text: run(*text.split()))


def server_device():
    gone(on_server)


def restart():
    on_server("nfsd-down")
    time.sleep(chance.random() * 2)
    on_server("nfsd-up")


def ended():
    """A connection ends, as somebody writes to a file in sysfs: at that moment, whatever it carries."""
    for path in chance.sample(transports(), 2):
        write(f"{path}/dstaddr", SERVER)


def nothing():
    time.sleep(chance.random() * 5)


@contextlib.contextmanager
def asked():
    """Somebody reads what our module shows of its connections, all the time: that must hold up nothing."""
    loop = f"while cat {CONNECTIONS} >/dev/null; do echo >>/tmp/asked; sleep 0.1; done"
    ask = "wc -l /tmp/asked"
    # What was there before is somebody else's.
    run("rm", "-f", "/tmp/asked")
    on_server("rm -f /tmp/asked")
    ours = subprocess.Popen(["sh", "-c", loop]) if os.path.exists(CONNECTIONS) else None
    theirs = on_server(f"[ ! -e {CONNECTIONS} ] || {{ nohup sh -c '{loop}' >/dev/null 2>&1 & echo $!; }}").strip()
    try:
        yield
        # Somebody who is held up has not ended.
        if ours:
            before = run(*ask.split())
            wait_for(lambda: run(*ask.split()) != before, 10, "somebody reads our connections")
        if theirs:
            before = on_server(ask)
            wait_for(lambda: on_server(ask) != before, 10, "somebody reads the server's connections")
    finally:
        if ours:
            ours.kill()
            ours.wait(10)
            run("rm", "-f", "/tmp/asked")
        if theirs:
            on_server(f"kill {theirs}; rm -f /tmp/asked")


EVENTS = [flap, flap, flap, client_device, server_device, restart, ended, nothing]
parser = argparse.ArgumentParser()
parser.add_argument("--seconds", type=float,
                    default=float(os.environ.get("SOAK_SECONDS") or (300 if LONG else 60)))
parser.add_argument("--seed", default=os.environ.get("SEED")
                    or f"{int.from_bytes(os.urandom(4), 'big'):08x}")
args = parser.parse_args()
chance = random.Random(args.seed)
happened, slowest, mended, bag = collections.Counter(), collections.Counter(), [], []
LONGEST = 180
say(f"seed {args.seed}, {args.seconds:.0f} s")
workers = []
patience = contextlib.ExitStack()


def all_go_on():
    """All work is getting on again; returns how long that took."""
    begun = time.monotonic()
    wanted = [worker.done() + 2 for worker in workers]
    def better():
        mended.append(mend())
        return all(worker.done() >= count for worker, count in zip(workers, wanted))

    wait_for(better, LONGEST,
             f"all work goes on: {[(w.name, w.done(), count) for w, count in zip(workers, wanted)]}")
    return time.monotonic() - begun


with check("work on four mounts"):
    base = use_count()
    # Who writes may wait for long: the connection manager gives up an attempt that nobody answers after a minute.
    patience.enter_context(patient(LONGEST + 20))
    workers += [Worker(number, args.seed) for number in range(len(KINDS))]
    wait_for(lambda: all(worker.done() for worker in workers), 60, "all work has begun")

with check(f"{args.seconds:.0f} s of accidents, and nothing is lost", limit=args.seconds + 600), asked():
    end = time.monotonic() + args.seconds
    told = time.monotonic()
    while time.monotonic() < end:
        # Each kind comes before any comes again.
        bag = bag or chance.sample(EVENTS, len(EVENTS))
        event = bag.pop()
        event()
        # Sometimes the next one comes before all is well again.
        if chance.random() < 0.7:
            slowest[event.__name__] = max(slowest[event.__name__], all_go_on())
        happened[event.__name__] += 1
        if time.monotonic() > told + 300:
            told = time.monotonic()
            say(f"{sum(happened.values())} accidents, rounds {[worker.done() for worker in workers]}, "
                f"{end - told:.0f} s to go")
    all_go_on()
    say("happened: " + ", ".join(f"{value} {name}" for name, value in happened.most_common()))
    say(f"queue pairs of rxe for connecting that were in error: {sum(mended)}")
    say("work went on after at most: " + ", ".join(f"{value:.1f} s ({name})" for name, value in slowest.items()))
    for worker in workers:
        stats = xprt_stats(worker.at)
        say(f"{worker.name}: {worker.done()} rounds, {stats['sends']} calls, {stats['connect_count']} connections, "
            f"{stats['bad_xids']} unknown XIDs, {stats['bad_reply_count']} bad replies")
        equal(stats["bad_reply_count"], 0, "replies that made no sense")
        if sum(happened.values()) >= 2 * len(EVENTS):
            expect(stats["connect_count"] > 1, "nothing has ended a connection")
            equal({event.__name__ for event in EVENTS} - set(happened), set(), "accidents that never came")

with check("the server has all that was written, and nothing else", limit=300):
    for worker in workers:
        worker.end()

with check("all is unmounted, and the module's use count is where it was", limit=300):
    for worker in workers:
        umount(worker.at, timeout=120)
        on_server(f"rm -rf {worker.folder}")
    # With one guest, the server's part has connections of its own for a moment.
    wait_for(lambda: use_count() == base, 60, f"use count {base}, it is {use_count()}")
patience.close()
done()
