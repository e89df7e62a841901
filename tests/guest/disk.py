# SPDX-License-Identifier: GPL-2.0
"""A disk of the server's that is exported, and can be frozen: calls that change its files wait then."""

import contextlib

from lib import *


@contextlib.contextmanager
def frozen_disk(extra=""):
    """An export whose file system can be frozen, with more options."""
    on_server("mkfs.ext4 -q /dev/vdd; mkdir -p /export/disk; mount /dev/vdd /export/disk")
    try:
        options = ",".join(filter(None, ("rw,no_root_squash,no_subtree_check,insecure,fsid=2", extra)))
        on_server(f"chmod 777 /export/disk; exportfs -o {options} '*:/export/disk'")
        yield "/export/disk"
    finally:
        on_server("fsfreeze -u /export/disk 2>/dev/null; exportfs -u '*:/export/disk'; exportfs -f; umount /export/disk; wipefs -qa /dev/vdd")
