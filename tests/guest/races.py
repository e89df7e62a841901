# SPDX-License-Identifier: GPL-2.0
"""Data races: work on all guests, looked at so closely that it hardly moves.

For the kernel that looks for them, with two processors (`make kcsan`, `--kernel kcsan --cpus 2`). KCSAN stops
one in some thousand accesses for some microseconds and sees whether another thread comes by. In a
virtual machine without hardware help that is too rarely and too short: nobody comes. Here it is one in
three hundred, for two milliseconds. What it reports is on the consoles, where scripts/vm sees it.
"""

import signal

from lib import *

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


# Small messages: what is to meet are calls and replies, not the bytes of files.
WORK = """
while dd if=/dev/zero of={0} bs=4k count=64 oflag=direct && dd if={0} of=/dev/null bs=4k iflag=direct; do :; done
"""


def at_work(at, folder):
    """Four processes read and write, and now and then their connection ends."""
    before, ops, begun = watched(), xprt_stats(at)["sends"], xprt_stats(at)["connect_count"]
    jobs = [subprocess.Popen(["sh", "-c", WORK.format(f"{at}/{folder}/{n}")], start_new_session=True,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for n in range(4)]
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(60)
            for transport in transports():
                write(f"{transport}/dstaddr", SERVER + "\n")
        equal([job.poll() for job in jobs], [None] * 4, "processes that have ended")
    finally:
        for job in jobs:
            os.killpg(job.pid, signal.SIGKILL)
        for job in jobs:
            job.wait(120 * SLOWNESS)
    stats, seen = xprt_stats(at), [now - then for then, now in zip(before, watched())]
    say(f"{stats['sends'] - ops} calls, {stats['connect_count'] - begun} new connections, "
        f"{' and '.join(map(str, seen))} accesses were watched")
    expect(stats["connect_count"] > begun, "no connection has ended")
    expect(stats["sends"] > ops + 100, "hardly any calls were made")
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
