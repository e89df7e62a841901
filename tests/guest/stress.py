# SPDX-License-Identifier: GPL-2.0
"""Many processes at once at the same files: file-system stressors of stress-ng, and dbench. Which ones, and
which are left out and why, is said at STRESSORS.

stress-ng looks at what it reads again where it can (--verify). What does not work over NFS with the C
transport either is named here with its reason, and has to go wrong: the yardstick is this file itself
in a start with the C module on both ends (`tests/run --client c --server c stress`).
"""

import re

from lib import *

TOOLS = "/run/payload/add"
SECONDS = 20 if LONG else 2
WORKERS = 2
# Options beyond the number of workers. Files are small: the export is in memory. Left out are link and
# symlink, whose round is 8192 names: minutes here; sync-file, which writes 1 GiB whatever it is told; xattr,
# which had no round in a minute over v4.2 (names.py has attributes).
STRESSORS = {
    "access": "", "acl": "", "aio": "", "aiol": "", "chdir": "--chdir-dirs 256", "chmod": "", "chown": "",
    "copy-file": "--copy-file-bytes 128m", "dentry": "--dentries 256", "dir": "--dir-dirs 256",
    "dirdeep": "--dirdeep-inodes 500", "dirmany": "--dirmany-bytes 512", "fallocate": "--fallocate-bytes 1m",
    "fcntl": "", "fiemap": "--fiemap-bytes 4m", "filename": "--filename-opts posix", "filerace": "",
    "flock": "", "fpunch": "--fpunch-bytes 1m", "fsize": "", "fstat": "", "getdent": "", "handle": "",
    "hdd": "--hdd-bytes 8m --hdd-write-size 30000", "io": "", "iomix": "--iomix-bytes 1m", "io-uring": "",
    "lease": "", "locka": "", "lockf": "", "lockmix": "", "lockofd": "", "metamix": "--metamix-bytes 256k",
    "mknod": "", "mmap": "--mmap-file --mmap-bytes 4m --mmap-write-check", "msync": "--msync-bytes 1m",
    "open": "", "readahead": "--readahead-bytes 1m", "rename": "", "revio": "--revio-bytes 1m",
    "seek": "--seek-size 8m", "sendfile": "--sendfile-size 1m", "touch": "", "unlink": "", "utime": "",
}
# What is read again comes from the server here: in chunks, and inline. A worker writes a file of half of
# that size before it reads, so that only these numbers of reads and writes say that it compared anything.
DIRECT = {
    "direct": ("--hdd-bytes 2m --hdd-write-size 64k --hdd-opts direct", 320),
    "direct and small": ("--hdd-bytes 1m --hdd-write-size 2k --hdd-opts direct", 1024),
}
# Over v3 it fails now and then, with the C transport too: it says that fallocate() went beyond the limit.
NOT_STEADY = {("3", "fsize")}
# These end after so many rounds, not by time: one takes seconds, or the first is late.
ROUNDS = dict.fromkeys("aiol chdir chmod fallocate filename fpunch fsize iomix metamix mmap unlink utime".split(), 2)
ROUNDS |= {"locka": 200, "lockmix": 200, "lockofd": 200}
NOT_OVER_NFS = {
    "3": {
        "fiemap": "no such ioctl",
        "lease": "no leases",
    },
    "4.2": {
        "acl": "no POSIX ACLs",
        "fiemap": "no such ioctl",
    },
}


def tool(name, *argv, seconds):
    """Run a tool with all its children, which end with it: (status, output)."""
    return run("env", f"LD_LIBRARY_PATH={TOOLS}", "timeout", "-k", "10", str((seconds + 180) * SLOWNESS),
               f"{TOOLS}/{name}", *argv, timeout=seconds + 240, ok=False)


def stress(at, vers, name, extra, rounds, least=1):
    limit = ["--timeout", f"{60 * SLOWNESS}s", f"--{name}-ops", str(rounds)] if rounds \
        else ["--timeout", f"{SECONDS * SLOWNESS}s"]
    status, text = tool("stress-ng", f"--{name}", str(WORKERS), *extra.split(), *limit, "--verify",
                        "--metrics-brief", "--oomable", "--temp-path", f"{at}/stress", seconds=60)
    found = re.search(rf"metrc: \[\d+\] {name} +(\d+) ", text)
    worked = status == 0 and found and int(found.group(1)) >= least
    reason = NOT_OVER_NFS[vers].get(name)
    if reason:
        expect(not worked, f"works, and should not: {reason}")
        expect("timed out" not in text and status < 124, f"status {status}: {text[-3000:]}")
        say(f"does not work, status {status}: {reason}")
        return
    expect(worked, f"status {status}: {text[-3000:]}")
    say(f"{found.group(1)} rounds of {WORKERS} workers")


def dbench(at):
    status, text = tool("dbench", "-c", f"{TOOLS}/client.txt", "-D", f"{at}/stress", "-t", str(3 * SECONDS),
                        "4", seconds=3 * SECONDS)
    found = re.search(r"(?m)^Throughput ([\d.]+) MB/sec.*", text)
    expect(status == 0 and found and float(found.group(1)) > 0, f"status {status}: {text[-3000:]}")
    say(found.group())


with server_folder("stress") as folder:
    for version in ("3", "4.2"):
        todo = [(name, name, words, ROUNDS.get(name)) for name, words in STRESSORS.items()
                if (version, name) not in NOT_STEADY]
        todo += [(f"hdd, {kind}", "hdd", words, rounds, rounds) for kind, (words, rounds) in DIRECT.items()]
        for label, *how in todo:
            with check(f"v{version}: stress-ng {label}", limit=400), mounted(version) as mnt:
                stress(mnt, version, *how)
            on_server(f"rm -rf {folder}/*")
        with check(f"v{version}: dbench", limit=400), mounted(version) as mnt:
            dbench(mnt)
        on_server(f"rm -rf {folder}/*")
done()
