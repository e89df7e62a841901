# SPDX-License-Identifier: GPL-2.0
"""Many connections at once: nconnect=8 under load."""

import contextlib
import os

from lib import *
from load import Load

with check("nconnect=8 under load: all connections used", 300), server_folder("eight"), \
        contextlib.ExitStack() as stack:
    at = stack.enter_context(mounted("4.2", "nconnect=8"))
    loads = [stack.enter_context(Load(f"{at}/eight", f"n{n}", direct=n % 2 == 0)) for n in range(6)]
    for load in loads:
        load.goes_on(100, rounds=5)
    lines = xprt_lines(at)
    equal(len(lines), 8, "connections")
    for line in lines:
        expect(int(line.split()[2 + XPRT_FIELDS.index("sends")]) > 10, "idle: " + line)
    equal(xprt_stats(at)["bad_reply_count"], 0, "bad replies")
    if os.environ["SERVER_FLAVOUR"] == "rust":
        # Receive buffers alone: a number of seven digits, shown like all counters.
        shown = int(on_server("cat /proc/sys/sunrpc/svc_rdma/message_bytes"))
        expect(8 * 148 * 4096 <= shown < 16 << 20, f"message buffers take {shown} bytes")
done()
