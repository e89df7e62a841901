# SPDX-License-Identifier: GPL-2.0
"""Machines whose devices do not reach memory directly: that it is so (scripts/vm --dma).

The network card then goes by memory that the kernel copies to and from, or through an IOMMU that forgets
each mapping at once. What a device does where nothing is mapped is on the console, and fails the run.
"""

from events import *
from lib import *

DMA = os.environ.get("DMA", "direct")
CARD = "/sys/class/net/$NETDEV/device"
# What tells of one packet, and how many a file of 4 MiB has at least: packets have 9000 bytes.
EVENTS = {"swiotlb": ("swiotlb/swiotlb_bounced", ("swiotlb_bounced",)),
          "iommu": ("iommu", ("map", "unmap"))}
PACKETS = 400
ACCESS_PLATFORM = 33


def used(side, card):
    if DMA == "swiotlb":
        expect("swiotlb=force" in shell(side, "cat /proc/cmdline").split(), "the kernel was not told")
        slots = int(shell(side, "cat /sys/kernel/debug/swiotlb/io_tlb_used"))
        say(f"{slots} slots are in use")
        expect(slots > 0, "no slot is in use")
    else:
        equal(shell(side, f"cat /sys/bus/pci/devices/{card}/iommu_group/type").strip(), "DMA",
              "domain of the card (DMA is strict, DMA-FQ is not)")


if DMA not in EVENTS:
    with check("devices that do not reach memory directly"):
        raise Skip("these do")
    done()
group, names = EVENTS[DMA]
sides = {"client": run, "server": on_server}
cards = {}
for name, side in sides.items():
    with check(f"{name}, {DMA}: the network card's memory goes this way"):
        cards[name] = shell(side, f"basename $(realpath {CARD}/..)").strip()
        equal(shell(side, f"cat {CARD}/features")[ACCESS_PLATFORM], "1", "the card asks where memory is")
        used(side, cards[name])
seen = {}
with check(f"{DMA}: a file of 4 MiB is written and read"), server_folder("dma"), mounted("4.2") as at, \
        contextlib.ExitStack() as stack:
    seen = {name: stack.enter_context(traced(side, group)) for name, side in sides.items()}
    data = random_bytes(4 << 20)
    write_file(f"{at}/dma/f", data, direct=True)
    expect(read_file(f"{at}/dma/f", direct=True) == data, "what is read differs")
for name, events in seen.items():
    with check(f"{name}, {DMA}: packets of the file went this way"):
        for event in names:
            found = [e for e in of(events, event) if DMA == "iommu" or cards[name] in e]
            say(f"{event}: {len(found)}")
            expect(len(found) >= PACKETS, f"{event}: less than {PACKETS}")
done()
