# SPDX-License-Identifier: GPL-2.0
"""A disk of the server's that is exported, and can be frozen: calls that change its files wait then."""

import contextlib

from lib import *


@contextlib.contextmanager
def frozen_disk():
    """An export whose file system can be frozen."""
    on_server("mkfs.ext4 -q /dev/vdd; mkdir -p /export/disk; mount /dev/vdd /export/disk")
    try:
        on_server("chmod 777 /export/disk; "
                  "exportfs -o rw,no_root_squash,no_subtree_check,insecure,fsid=2 '*:/export/disk'")
        yield "/export/disk"
    finally:
        on_server("exportfs -u '*:/export/disk'; exportfs -f; umount /export/disk; wipefs -qa /dev/vdd")
