# SPDX-License-Identifier: GPL-2.0
"""What an administrator does with a transport in sysfs: look, move it elsewhere, take it out."""

import glob
import os
import re
import time

from lib import *
from load import Load

SLOTS = 128
# A further address of the server.
OTHER = "10.0.0.77"


def info(folder):
    return dict(re.findall(r"(?m)^(\w+)=(.*)$", read(folder + "/xprt_info")))


def peers():
    """Addresses of the other ends of our connections."""
    text = "\n".join(l for l in rdma_objects("cm_id") if f"[{MODULE}]" in l and "state CONNECT" in l)
    return re.findall(r"dst-addr ([0-9.]+):", text)


def debugfs():
    found = glob.glob("/sys/kernel/debug/sunrpc/rpc_xprt/*/info")
    shown = [dict(re.findall(r"(?m)^(\w+): +(.*)$", read(path))) for path in found]
    return [each for each in shown if each["netid"].startswith("rdma")]


with server_folder("admin"):
    with check("sysfs and debugfs show addresses, slots and the window"), mounted("4.2") as at:
        with Load(f"{at}/admin") as load:
            load.goes_on(60)
        folder, = transports()
        shown = info(folder)
        say(shown)
        equal(shown["dst_port"], str(PORT), "dst_port")
        equal(shown["max_num_slots"], str(SLOTS), "max_num_slots")
        # The transport has slots of its own, and no source port to show.
        for name in ("min_num_slots", "num_reqs", "src_port"):
            equal(shown[name], "0", name)
        window = int(shown["cong_win"])
        expect(window % 256 == 0 and 2 <= window // 256 <= SLOTS, f"cong_win is {window}")
        equal(shown["main_xprt"], "1", "main_xprt")
        expect("CONNECTED" in read(folder + "/xprt_state"), read(folder + "/xprt_state"))
        text, = debugfs()
        say(text)
        equal([text[name] for name in ("netid", "addr", "port")], ["rdma", SERVER, str(PORT)], "debugfs")
        expect("saddr" not in text, "a source address is shown")

    with check("debugfs shows IPv6 in its form"), \
            mounted("4.2", opts=options("4.2").replace("rdma", "rdma6"), server=SERVER6):
        text, = debugfs()
        equal([text[name] for name in ("netid", "addr", "port")], ["rdma6", SERVER6, str(PORT)],
              "debugfs")

    with check("dstaddr: the connection moves to another address of the server, under load", 200):
        on_server(f"ip addr add {OTHER}/24 dev $NETDEV")
        try:
            with mounted("4.2") as at, Load(f"{at}/admin") as load:
                load.goes_on(60)
                folder, = transports()
                equal(peers(), [SERVER], "connections")
                write(folder + "/dstaddr", OTHER + "\n")
                load.goes_on(60, rounds=5)
                equal(read(folder + "/dstaddr").strip(), OTHER, "dstaddr")
                equal(peers(), [OTHER], "connections")
                write(folder + "/dstaddr", SERVER + "\n")
                load.goes_on(60, rounds=5)
                equal(peers(), [SERVER], "connections")
        finally:
            on_server(f"ip addr del {OTHER}/24 dev $NETDEV")

    with check("one of three connections is taken out and put back, another removed, under load", 200), \
            mounted("4.2", "nconnect=3") as at, Load(f"{at}/admin") as load:
        load.goes_on(60, rounds=5)
        extra = [d for d in transports() if info(d).get("main_xprt") == "0"]
        equal(len(extra), 2, "connections besides the main one")
        try:
            main, = set(transports()) - set(extra)
            write(main + "/xprt_state", "offline")
        except OSError as error:
            equal(error.errno, 22, "errno for the main connection")
        else:
            raise Failed("the main connection went offline")
        write(extra[0] + "/xprt_state", "offline")
        load.goes_on(60, rounds=5)
        write(extra[0] + "/xprt_state", "online")
        load.goes_on(60, rounds=5)
        write(extra[1] + "/xprt_state", "offline")
        write(extra[1] + "/xprt_state", "remove")
        load.goes_on(60, rounds=5)
        wait_for(lambda: len(peers()) == 2, 20, f"two connections are left, {peers()}")

if LONG:
    with check("idle for five minutes: the connection ends; the next call makes a new one", 500), \
            mounted("4.2"):
        # The client of NFSv4 renews its lease, which is traffic too; one of NFSv3 is silent.
        with mounted("3", at="/mnt/v3") as quiet:
            os.listdir(quiet)
            before = len(peers())
            time.sleep(280)
            equal(len(peers()), before, "connections a moment before")
            wait_for(lambda: len(peers()) == before - 1, 60, "the idle connection ended")
            os.statvfs(quiet)
            equal(len(peers()), before, "connections afterwards")
done()
