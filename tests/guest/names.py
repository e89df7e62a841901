# SPDX-License-Identifier: GPL-2.0
"""Big directories, and calls and replies that are too long for one Send."""

import ctypes
import errno
import os

from lib import *

FILES = 2000


def counted(at, before, *names):
    """Some of these counters of the transport must have grown since `before`."""
    after = xprt_stats(at)
    grown = {n: after[n] - before[n] for n in names}
    expect(all(grown.values()), f"counters grew by {grown}")


def getxattr(path, name, room=65536):
    """os.getxattr() tries with 128 bytes first; this one asks once."""
    space = ctypes.create_string_buffer(room)
    got = libc.getxattr(path.encode(), name.encode(), space, room)
    if got < 0:
        raise OSError(ctypes.get_errno(), "getxattr")
    return space.raw[:got]


with server_folder("many") as folder:
    names = {f"file-{n:04}-{'x' * (n % 50)}" for n in range(FILES)}
    on_server(f"cd {folder} && for n in $(seq 0 {FILES - 1}); do printf '%s\\n' $n; done | python3 -c '"
              "import sys\n"
              "for n in map(int, sys.stdin): open(\"file-%04d-\" % n + \"x\" * (n % 50), \"w\").write(\"y\" * (n % 70))'")
    for vers in VERSIONS:
        with check(f"v{vers}: directory of {FILES} files"), mounted(vers) as at:
            before = xprt_stats(at)
            got = os.listdir(f"{at}/many")
            equal(len(got), FILES, "entries")
            equal(set(got), names, "names")
            counted(at, before, "reply_chunk_count")
        with check(f"v{vers}: directory of {FILES} files with attributes"), mounted(vers) as at:
            with os.scandir(f"{at}/many") as entries:
                sizes = {e.name: e.stat().st_size for e in entries}
            equal(len(sizes), FILES, "entries")
            equal([name for name in names if sizes[name] != int(name[5:9]) % 70], [], "files of another size")

with server_folder("long") as folder:
    for vers in VERSIONS:
        with check(f"v{vers}: symlink of 4000 bytes"), mounted(vers) as at:
            target = "/".join(["y" * 99] * 40)
            before = xprt_stats(at)
            os.symlink(target, f"{at}/long/link")
            counted(at, before, "read_chunk_count")
            equal(on_server(f"readlink {folder}/link").strip(), target, "link on the server")
            os.unlink(f"{at}/long/link")
            on_server(f"python3 -c 'import os; os.symlink(\"/\".join([\"z\" * 99] * 40), \"{folder}/back\")'")
            before = xprt_stats(at)
            equal(os.readlink(f"{at}/long/back"), target.replace("y", "z"), "link read back")
            counted(at, before, "reply_chunk_count")
            os.unlink(f"{at}/long/back")
        with check(f"v{vers}: name of 255 bytes"), mounted(vers) as at:
            name = "n" * 255
            write_file(f"{at}/long/{name}", b"long name")
            equal(on_server(f"cat {folder}/{name}"), "long name", "content on the server")
            os.rename(f"{at}/long/{name}", f"{at}/long/{'m' * 255}")
            equal(os.listdir(f"{at}/long"), ["m" * 255], "directory")
            os.unlink(f"{at}/long/{'m' * 255}")
            try:
                write_file(f"{at}/long/{'o' * 256}", b"")
                raise Failed("a name of 256 bytes was taken")
            except OSError as error:
                equal(error.errno, errno.ENAMETOOLONG, "errno for 256 bytes")

    # 12 bytes per entry of an NFSv3 ACL: a call and a reply that no Send holds. nfsd takes no more
    # than about a page of them, over any transport.
    with check("v3: ACL of 325 entries, set and read"), mounted("3") as at:
        path = f"{at}/long/acl"
        write_file(path, b"")
        entries = [f"user:{n}:{'r-x' if n % 2 else '-w-'}" for n in range(1000, 1325)]
        write("/tmp/acl", "user::rw-\ngroup::r--\nmask::rwx\nother::r--\n" + "\n".join(entries) + "\n")
        before = xprt_stats(at)
        run("setfacl", "-M", "/tmp/acl", path)
        counted(at, before, "read_chunk_count", "nomsg_call_count")
        there = on_server(f"getfacl -n {folder}/acl")
        missing = [e for e in entries if f"\n{e}\n" not in there]
        expect(not missing, f"{len(missing)} entries missing on the server")
        run("umount", at)
        mount("3")
        before = xprt_stats(at)
        here = run("getfacl", "-n", path)
        counted(at, before, "reply_chunk_count")
        missing = [e for e in entries if f"\n{e}\n" not in here]
        expect(not missing, f"{len(missing)} entries missing here")
        os.unlink(path)

    for size in (1, 3000, 4096, 20000, 65536):
        with check(f"v4.2: user xattr of {size} bytes, set and read"), mounted("4.2") as at:
            path, value = f"{at}/long/xattr", random_bytes(size, 5)
            write_file(path, b"")
            before = xprt_stats(at)
            os.setxattr(path, "user.big", value)
            if size > 4000:
                counted(at, before, "read_chunk_count", "nomsg_call_count")
            there = on_server(f"cd {folder} && getfattr -n user.big --only-values xattr | sha256sum")
            equal(there.split()[0], sha(value), "sha256 on the server")
            run("umount", at)
            mount("4.2")
            before = xprt_stats(at)
            expect(getxattr(path, "user.big") == value, "what was read back differs")
            if size > 4000:
                counted(at, before, "reply_chunk_count")
            os.unlink(path)

    # GETXATTR has no limit in its arguments: the client expects 128 bytes and offers no chunk for
    # more, the server answers with RDMA_ERROR. The call fails, the connection goes on.
    with check("v4.2: reply longer than what the client offers room for"), mounted("4.2") as at:
        path = f"{at}/long/large"
        on_server(f"cd {folder} && python3 -c 'import os; open(\"large\", \"w\"); "
                  "os.setxattr(\"large\", \"user.big\", b\"x\" * 20000)'")
        try:
            getxattr(path, "user.big", 128)
            raise Failed("20000 bytes came in 128")
        except OSError as error:
            expect(error.errno in (errno.EIO, errno.ERANGE), f"errno {error.errno}")
        expect(getxattr(path, "user.big") == b"x" * 20000, "what was read with more room differs")
        equal(xprt_stats(at)["connect_count"], 1, "connections made")
done()
