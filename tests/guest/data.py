# SPDX-License-Identifier: GPL-2.0
"""Files of awkward sizes: written, compared on the server, read back."""

import os
import sys

from lib import *

SIZES = (0, 1, 3, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20, (1 << 20) + 1, 64 << 20)
random_bytes(max(SIZES))
CONTENT = {size: random_bytes(size, seed=n) for n, size in enumerate(SIZES)}
SUMS = {str(size): sha(data) for size, data in CONTENT.items()}


def sizes(vers):
    """All of them. The largest takes longest: `make test` has it for all versions in one pairing,
    and a debug kernel not at all, but where it is asked for."""
    if SLOWNESS > 1 and not LONG:
        return SIZES[:-1]
    first = (os.environ["CLIENT"], os.environ["SERVER_FLAVOUR"]) == ("rust", "c")
    return SIZES if LONG or RDMA != "siw" and (first or vers == "4.2") else SIZES[:-1]


for vers in sys.argv[1:] or (VERSIONS if LONG or RDMA != "siw" else ("3", "4.2")):
    for direct in (False, True):
        kind = f"v{vers} {'O_DIRECT' if direct else 'buffered'}"
        with server_folder("data") as folder:
            problems = {}
            with check(f"{kind}: mount, write, unmount", 300), mounted(vers) as at:
                for size in sizes(vers):
                    try:
                        write_file(f"{at}/data/{size}", CONTENT[size], direct)
                    except OSError as error:
                        problems[size] = f"write: {error}"
            sums = {}
            with check(f"{kind}: checksums made on the server", 300):
                sums = server_sums(folder)
            back = {}
            with check(f"{kind}: mount, read, unmount", 300), mounted(vers) as at:
                for size in sizes(vers):
                    try:
                        back[size] = read_file(f"{at}/data/{size}", direct) == CONTENT[size]
                    except OSError as error:
                        problems.setdefault(size, f"read: {error}")
            for size in sizes(vers):
                with check(f"{kind}: {size} bytes"):
                    expect(size not in problems, problems.get(size))
                    equal(sums.get(str(size)), SUMS[str(size)], "sha256 on the server")
                    expect(back.get(size), "what was read back differs")
done()
