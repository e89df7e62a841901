# SPDX-License-Identifier: GPL-2.0
"""Data races: work on all guests, looked at so closely that it hardly moves.

For the kernel that looks for them, with two processors (`make kcsan`, `--kernel kcsan --cpus 2`). KCSAN stops
one in some thousand accesses for some microseconds and sees whether another thread comes by. In a
virtual machine without hardware help that is too rarely and too short: nobody comes. Here it is one in
three hundred, for two milliseconds. What it reports is on the consoles, where scripts/vm sees it.
"""

from lib import *
from load import Load

KCSAN = "/sys/module/kcsan/parameters"
SECONDS = 900 if LONG else 240
CLOSELY = f"cd {KCSAN}; echo 300 >skip_watch; echo 2000 >udelay_task; echo 500 >udelay_interrupt"
USUAL = f"cd {KCSAN}; echo 4000 >skip_watch; echo 80 >udelay_task; echo 20 >udelay_interrupt"


def everywhere(command):
    """What a command says on each machine."""
    return [run("sh", "-c", command)] + ([on_server(command)] if NODES == 2 else [])


def watched():
    """How many accesses were watched so far on each machine."""
    return [int(text.split()[1]) for text in everywhere("grep setup_watchpoints: /sys/kernel/debug/kcsan")]


def at_work(at, folder):
    """Four processes read and write, and now and then their connection ends."""
    before = watched()
    with contextlib.ExitStack() as stack:
        jobs = [stack.enter_context(Load(f"{at}/{folder}", f"load{n}", direct=n % 2)) for n in range(4)]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for job in jobs:
                job.goes_on(60, rounds=1)
            for path in glob.glob("/sys/kernel/sunrpc/xprt-switches/*/xprt-*-rdma/dstaddr"):
                write(path, SERVER + "\n")
        say(f"{', '.join(str(job.done()) for job in jobs)} rounds, "
            f"{xprt_stats(at)['connect_count']} connections")
    seen = [now - then for then, now in zip(before, watched())]
    say(f"{' and '.join(map(str, seen))} accesses were watched")
    expect(min(seen) > 5000, "few accesses were watched")


if not os.path.exists(KCSAN):
    with check("data races"):
        raise Skip("this kernel does not look for them")
else:
    for vers in ("3", "4.2"):
        # Limits are as long as this kernel is slow without being looked at so closely.
        with check(f"v{vers}: four at work, and connections that end", SECONDS), \
                server_folder("races"), mounted(vers) as at:
            everywhere(CLOSELY)
            try:
                at_work(at, "races")
            finally:
                everywhere(USUAL)
done()
