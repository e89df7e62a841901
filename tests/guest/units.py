# SPDX-License-Identifier: GPL-2.0
"""The module's KUnit tests: a kernel with KUnit runs those that are asked for when it loads the module."""

from lib import *

PARSER = "/run/payload/selftests/tools/testing/kunit/kunit.py"
SUITES = ("rpcrdma_client", "rpcrdma_reply", "rpcrdma_ib", "rpcrdma_expose", "rpcrdma_ib_passive",
          "rpcrdma_ib_server", "rpcrdma_ib_op", "rpcrdma_rt", "rpcrdma_server")

log = ""
with check("the module is loaded by a kernel with KUnit"):
    if not os.path.exists("/sys/module/kunit"):
        without_checkers("KUnit")
    on_server("nfsd-down")
    wait_for(lambda: use_count() == 0, 20, "use count 0")
    run("rmmod", MODULE)
    kernel_log("KUnit")
    run("env", "KUNIT=*", "load-transport")
    log = run("dmesg", "--notime").rpartition("test: KUnit\n")[2]
    on_server("nfsd-up")
with check("KUnit: the parser finds no failure"):
    if not log:
        raise Skip("as above")
    write("/tmp/kunit.log", log)
    status, text = run("python3", PARSER, "parse", "/tmp/kunit.log", ok=False)
    say(text)
    expect(text, "the parser says nothing")
    equal(status, 0, "status of the parser")
    for suite in SUITES:
        expect(re.search(rf"\[PASSED\] {suite}\b", text), f"no result of {suite}")
with check("the request that nobody has room for was told of, with its device"):
    if not log:
        raise Skip("as above")
    wanted = r"a connection of client .* by device \S+ is refused: 128 others wait to be accepted"
    expect(re.search(wanted, log), f"no {wanted!r}: {[l for l in log.splitlines() if 'refused' in l]}")
done()
