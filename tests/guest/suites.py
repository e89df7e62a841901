# SPDX-License-Identifier: GPL-2.0
"""Test suites of others, which know nothing of NFS or RDMA: pjdfstest, fsx, and what fio verifies.

What fails over NFS with the C transport as well is named here, and has to fail: the yardstick is this
file itself, in a start with the C module on both ends (`tests/run --client c --server c suites`).
"""

import json
import os
import re
import time
import zlib

from lib import *

TOOLS = "/run/payload/add"
# As root, and as two users whom both ends know.
USERS = "getent passwd tests >/dev/null || useradd -M tests"
# What NFS does its own way, by pjdfstest's names: a removed file that is open is renamed, and times of
# NFSv3 have 32 bits.
NOT_OVER_NFS = {
    "3": ["unlink::open_file_not_freed", "utimensat::y2038"],
    "4.2": ["unlink::open_file_not_freed"],
}
FEATURES = ["posix_fallocate", "rename_ctime", "utime_now", "utimensat"]
OPERATIONS = 4000 if LONG else 1000
# What fsx and fio do by chance: tests/run --seed, so that the yardstick does the same.
SEED = zlib.crc32(os.environ.get("SEED", str(time.time_ns())).encode())


def toml(**sections):
    """Sections of a configuration file."""
    return "".join(f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in section.items())
                   for name, section in sections.items())


def pjdfstest(at, vers):
    write("/tmp/pjdfstest.toml", toml(
        settings={"naptime": 0.02, "expected_failures": NOT_OVER_NFS[vers]},
        dummy_auth={"entries": [["nobody", "nogroup"], ["tests", "tests"]]},
        **{f"features.{name}": {} for name in FEATURES if vers != "3" or name != "posix_fallocate"}))
    status, text = run(f"{TOOLS}/pjdfstest", "-c", "/tmp/pjdfstest.toml", "-p", f"{at}/suites",
                       timeout=1200, ok=False)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    say(text.strip().splitlines()[-1] if status == 0 else text)
    expect(status == 0, "not as expected: " + " ".join(
        re.findall(r"(?m)^(\S+) +(?:FAILED|PASSED UNEXPECTEDLY)$", text)))
    expect(int(re.search(r"(\d+) passed", text).group(1)) > 100, "hardly anything ran")


def fsx(at, vers, name, size):
    weights = {"close_open": 1, "read": 10, "write": 10, "mapread": 5, "mapwrite": 5, "invalidate": 1,
               "truncate": 3, "fsync": 1, "fdatasync": 1, "sendfile": 3, "posix_fadvise": 1}
    if vers != "3":
        weights.update(punch_hole=2, copy_file_range=2, posix_fallocate=1)
    write("/tmp/fsx.toml", f"flen = {1 << 20}\n" + toml(opsize={"max": size}, weights=weights))
    seed = str(SEED)
    status, text = run(f"{TOOLS}/fsx", "-f", "/tmp/fsx.toml", "-N", str(OPERATIONS), "-S", seed,
                       "-P", "/tmp", f"{at}/suites/{name}", timeout=900, ok=False)
    expect(status == 0, f"seed {seed}: {text[-2000:]}")
    say(f"{OPERATIONS} operations of up to {size} bytes, seed {seed}")


def fio(at, name, direct):
    say(f"seed {SEED}")
    run("fio", f"--name={name}", f"--directory={at}/suites", "--rw=randrw", "--bsrange=512-1m", "--size=24m",
        f"--direct={direct}", "--ioengine=libaio", "--iodepth=8", "--numjobs=2", "--verify=crc32c-intel",
        "--verify_fatal=1", "--bs_unaligned=0", "--allrandrepeat=1",
        f"--randseed={SEED}", "--end_fsync=1",
        # Through the page cache, what was just written is there still: it is read when the cache was emptied, at the end.
        *(["--verify_backlog=64"] if direct else []), timeout=600)


run("sh", "-c", USERS)
on_server(USERS)
equal(run("id", "-u", "tests"), on_server("id -u tests"), "the user's number on both ends")
with server_folder("suites"):
    for version in ("3", "4.2"):
        with check(f"v{version}: pjdfstest", limit=1300), mounted(version) as mnt:
            pjdfstest(mnt, version)
        with check(f"v{version}: fsx", limit=1000), mounted(version) as mnt:
            fsx(mnt, version, "fsx", 300000)
        with check(f"v{version}: fsx, small reads and writes", limit=1000), \
                mounted(version, "rsize=4096,wsize=4096") as mnt:
            fsx(mnt, version, "small", 30000)
        for is_direct in (0, 1):
            with check(f"v{version}: fio verifies what it wrote, " + ("direct" if is_direct else "cached"),
                       limit=700), mounted(version) as mnt:
                fio(mnt, f"fio{is_direct}", is_direct)
done()
