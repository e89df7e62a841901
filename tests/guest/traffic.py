# SPDX-License-Identifier: GPL-2.0
"""A little of everything that an NFS client says, for tests/record; not a test."""

import fcntl

from lib import *

SIZES = (0, 1, 100, 3000, 5000, 65537)


def traffic(at, vers):
    """Each kind of call that a mount of this version makes."""
    top = f"{at}/traffic-{vers}"
    os.mkdir(top)
    for size in SIZES:
        write_file(f"{top}/{size}", random_bytes(size, 1))
        read_file(f"{top}/{size}", direct=True)
        write_file(f"{top}/{size}", random_bytes(size, 2), direct=True)
    os.truncate(f"{top}/5000", 4099)
    os.chmod(f"{top}/100", 0o600)
    os.utime(f"{top}/100", (1, 2))
    os.access(f"{top}/100", os.X_OK)
    os.link(f"{top}/100", f"{top}/link")
    os.rename(f"{top}/link", f"{top}/other-name")
    os.mkfifo(f"{top}/fifo")
    for size in (50, 3000):
        os.symlink("/".join(["x" * 99] * (size // 99 + 1)), f"{top}/symlink-{size}")
        os.readlink(f"{top}/symlink-{size}")
    for n in range(60):
        os.mkdir(f"{top}/d{n:040}")
    os.listdir(top)
    os.scandir(top)
    run("ls", "-l", top)
    os.rmdir(f"{top}/d{0:040}")
    os.statvfs(at)
    fd = os.open(f"{top}/65537", os.O_RDWR)
    with contextlib.suppress(OSError):
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(fd, fcntl.LOCK_UN)
    with contextlib.suppress(OSError):
        os.lseek(fd, 0, os.SEEK_HOLE)
        os.posix_fallocate(fd, 70000, 4096)
        os.copy_file_range(fd, fd, 4096, 0, 80000)
    os.close(fd)
    if vers == "4.2":
        os.setxattr(f"{top}/100", "user.a", random_bytes(10000))
        os.setxattr(f"{top}/100", "user.b", b"small")
        os.getxattr(f"{top}/100", "user.a")
        os.listxattr(f"{top}/100")
        os.removexattr(f"{top}/100", "user.b")
    if vers != "3":
        run("nfs4_getfacl", f"{top}/100")
    os.unlink(f"{top}/other-name")
    with contextlib.suppress(OSError):
        os.open(f"{top}/is-not-there", os.O_RDONLY)


with check("traffic is recorded"):
    for vers in ("3", "4.0", "4.2"):
        run("on-host", f"capture start v{vers}")
        with mounted(vers) as at:
            traffic(at, vers)
        run("on-host", "capture stop")
        on_server(f"rm -rf {EXPORT}/traffic-*")
done()
