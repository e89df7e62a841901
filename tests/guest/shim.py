# SPDX-License-Identifier: GPL-2.0
"""What tests/shim does to the RDMA device and the transport of one side: `run` or `on_server`."""

import contextlib

from events import *
from lib import *

SHIM = "/run/payload/modules/shim.ko"
PARAMETERS = "/sys/module/shim/parameters"


def fail(side, verb, skip=0, times=1):
    """Let `skip` calls of a verb pass, then `times` fail."""
    shell(side, f"echo {verb} {skip} {times} >{PARAMETERS}/fail")


def counts(side, verb):
    """How many calls there were since, and how many of them failed."""
    for line in shell(side, f"cat {PARAMETERS}/fail").splitlines():
        name, seen, failed = line.split()
        if name == verb:
            return int(seen), int(failed)


def shim_set(side, name, value):
    shell(side, f"echo {value} >{PARAMETERS}/{name}")


def lose():
    """The client's connection ends with the next call: its Send cannot be posted."""
    fail(run, "post_send")


def in_use(side, regions=True):
    """RDMA objects of the kernel, and the references of the module."""
    text = shell(side, "rdma resource show | grep -v '^$'; cat /sys/module/rpcrdma*/refcnt")
    return text if regions else re.sub(r" mr \d+", "", text)


def shim_text(side):
    """Tell the shim where the code of the module is."""
    text = shell(side, "grep -i ' t .*\\[rpcrdma[_a-z]*\\]' /proc/kallsyms | cut -d' ' -f1 | sort")
    first, *_, last = text.split()
    shim_set(side, "text", f"{int(first, 16)},{int(last, 16) + 4096}")


@contextlib.contextmanager
def shim(side):
    """The shim is there in the body, with the code whose allocations may fail."""
    shell(side, f"insmod {SHIM} device={RDMA}0")
    try:
        shim_text(side)
        yield
    finally:
        shell(side, "rmmod shim")


@contextlib.contextmanager
def nothing_left(side, what, regions=True):
    """As before at the end. How many regions a client's connection has depends on what it did."""
    before = in_use(side, regions)
    yield
    wait_for(lambda: in_use(side, regions) == before, 30, f"{what}: {before}")
