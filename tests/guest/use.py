# SPDX-License-Identifier: GPL-2.0
"""scripts/use: which module gets loaded, for each name, after each choice; and that it can be undone.

It works on the guest's own /etc/modprobe.d, and on /lib/modules under an overlay, which both are as
they were afterwards.
"""

import shutil
import time

from lib import *

BOTH = {"rpcrdma", "rpcrdma_rust"}
OURS, KERNELS = {"rpcrdma_rust"}, {"rpcrdma"}
NAMES = ("rpcrdma", "rpcrdma6", "xprtrdma", "svcrdma")
MODULES = f"/lib/modules/{os.uname().release}"
BUILT = "/run/payload/modules/rpcrdma_rust.ko"
KO = f"{MODULES}/updates/rpcrdma_rust.ko"
CONF = "/etc/modprobe.d/rpcrdma-rust.conf"
# What scripts/guest-init has there stands for the same names.
GUEST_CONF, AWAY = "/etc/modprobe.d/rpcrdma.conf", "/etc/rpcrdma.conf.away"
TREE, LAYER = "/tmp/use", "/run/use"


def use(word, destdir="", ok=True):
    # depmod takes its time.
    return run("env", f"DESTDIR={destdir}", f"{TREE}/scripts/use", word, ok=ok, timeout=300)


def refused(word, *texts):
    """scripts/use fails, says all that, and has changed nothing."""
    before = loaded(), read(CONF), files("/etc/modprobe.d")
    status, text = use(word, ok=False)
    say(text)
    expect(status, "it did not fail")
    for part in texts:
        expect(part in text, f"it does not say {part!r}: {text}")
    equal((loaded(), read(CONF), files("/etc/modprobe.d")), before, "modules, choice, files of choices")


def loaded():
    return {line.split()[0] for line in read("/proc/modules").splitlines()} & BOTH


def nothing_loaded():
    for module in loaded():
        run("rmmod", module)


def chosen():
    return use("status").splitlines()[0].split()[-1].rstrip(".")


def files(*folders):
    return {os.path.join(at, name) for folder in folders for at, folders, names in os.walk(folder)
            for name in folders + names}


def same_files(before, *folders):
    after = files(*folders)
    equal((after - before, before - after), (set(), set()), "files that are new, and that are gone")


def each_name(wanted):
    """Each name that is asked for, once and then again, loads these modules."""
    for name in NAMES:
        nothing_loaded()
        for words in ((name,), ("-q", "--", name)):
            run("modprobe", *words)
            equal(loaded(), wanted, f"loaded for {name}")
    nothing_loaded()


def kernel_asks(wanted):
    """The kernel itself asks: sunrpc for a listener's transport, and the NFS client for a mount's."""
    nothing_loaded()
    on_server("nfsd-up")
    try:
        equal(loaded(), wanted, "loaded for a listener")
        with mounted("4.2") as at:
            os.listdir(at)
        equal(loaded(), wanted, "loaded after a mount")
    finally:
        on_server("nfsd-down")
    unused()
    nothing_loaded()
    # Nobody listens: the mount fails, once it has a transport.
    os.makedirs("/mnt/a", exist_ok=True)
    status, text = run("mount", "-t", "nfs", "-o", options("4.2", "retry=0,soft,timeo=10,retrans=0"),
                       f"{SERVER}:{EXPORT}", "/mnt/a", ok=False)
    expect(status, "mounted, though nobody listens")
    equal(loaded(), wanted, f"loaded for a mount, which said {text.strip()}")
    unused()
    nothing_loaded()


def unused():
    for module in loaded():
        wait_for(lambda: read(f"/sys/module/{module}/refcnt").strip() == "0", 20, f"{module} is not in use")


def fallback(*words):
    """Each name loads the kernel's module, and the kernel log tells why."""
    for name in NAMES:
        nothing_loaded()
        mark = f"{name} is asked for, {time.monotonic_ns()}"
        kernel_log(mark)
        run("modprobe", "-q", name)
        equal(loaded(), KERNELS, f"loaded for {name}")
        lines = [line for line in run("dmesg").partition(mark)[2].splitlines() if "rpcrdma-rust: " in line]
        equal(len(lines), 1, "lines in the kernel log")
        for part in (*words, "kernel's own rpcrdma is used", f"make KVER={os.uname().release}"):
            expect(part in lines[0], f"it does not say {part!r}: {lines[0]}")
    say(lines[0])
    nothing_loaded()


@contextlib.contextmanager
def machine():
    """A machine that has never had our module, and a tree in which it was built."""
    with contextlib.ExitStack() as last:
        # What is done last comes first here.
        last.callback(on_server, "load-transport && nfsd-up")
        on_server("nfsd-down")
        unused()
        nothing_loaded()
        os.rename(GUEST_CONF, AWAY)
        last.callback(os.rename, AWAY, GUEST_CONF)
        last.callback(lambda: os.path.exists(CONF) and os.unlink(CONF))
        os.makedirs(f"{TREE}/scripts")
        last.callback(shutil.rmtree, TREE)
        shutil.copy("/run/payload/scripts/use", f"{TREE}/scripts/use")
        os.symlink(BUILT, f"{TREE}/rpcrdma_rust.ko")
        for folder in ("upper", "work"):
            os.makedirs(f"{LAYER}/{folder}")
        last.callback(lambda: (run("modprobe", "-r", "overlay"), shutil.rmtree(LAYER)))
        run("mount", "-t", "overlay", "-o",
            f"lowerdir={MODULES},upperdir={LAYER}/upper,workdir={LAYER}/work", "overlay", MODULES)
        last.callback(run, "umount", MODULES)
        # The guest's modules were listed by the host's depmod, which may know of fewer lists.
        run("depmod", timeout=300)
        last.callback(nothing_loaded)
        last.callback(unused)
        last.callback(lambda: on_server("nfsd-down"))
        last.callback(subprocess.run, ["umount", "-f", "-l", "/mnt/a"], stderr=subprocess.DEVNULL)
        yield


def all_checks():
    before = files(MODULES, "/etc/modprobe.d")
    with check("install copies, and loads nothing; the kernel's own module is chosen", 400):
        say(use("install"))
        equal(loaded(), set(), "loaded")
        new = files(MODULES, "/etc/modprobe.d") - before
        equal(new, {KO, os.path.dirname(KO), CONF}, "new files")
        equal(read_file(KO), read_file(BUILT), "the module")
        equal(run("modinfo", "-F", "filename", "rpcrdma_rust").strip(), KO, "what modprobe finds")
        equal(chosen(), "rpcrdma", "choice")
    with check("the kernel's own is chosen: each name loads it, alone"):
        each_name(KERNELS)
    with check("the kernel's own is chosen: so it is when the kernel asks"):
        kernel_asks(KERNELS)
    with check("use ours swaps a loaded C module"):
        run("modprobe", "svcrdma")
        equal(loaded(), KERNELS, "loaded before")
        say(use("ours"))
        equal((loaded(), chosen()), (OURS, "rpcrdma_rust"), "loaded, and chosen")
        expect("rpcrdma_rust is loaded" in use("status"), use("status"))
    with check("ours is chosen: each name loads it, alone"):
        each_name(OURS)
        run("modprobe", "rpcrdma_rust")
        equal(loaded(), OURS, "loaded by its own name")
        nothing_loaded()
    with check("ours is chosen: so it is when the kernel asks"):
        kernel_asks(OURS)
    with check("install again loads nothing, and leaves the choice, in its present form", 300):
        write(CONF, "# Written by scripts/use of rpcrdma-rust: NFS over RDMA is served by rpcrdma_rust.\n"
                    "alias rpcrdma rpcrdma_rust\nblacklist rpcrdma\n")
        use("install")
        expect("install rpcrdma " in read(CONF) and "alias rpcrdma " not in read(CONF), read(CONF))
        equal((loaded(), chosen()), (set(), "rpcrdma_rust"), "loaded, and chosen")
    with check("use kernel while ours is in use changes nothing, and says what uses it"):
        on_server("nfsd-up")
        refused("kernel", "nothing is changed: rpcrdma_rust is in use", "nfsd listens")
        with mounted("4.2") as at:
            refused("kernel", "/mnt/a is mounted: umount /mnt/a", "nfsd listens")
            write_file(f"{at}/use", b"ours goes on", direct=True)
            equal(read(f"{EXPORT}/use"), "ours goes on", "content on the server")
            os.unlink(f"{at}/use")
    with check("use kernel swaps, right after what used ours has ended"):
        on_server("nfsd-down")
        say(use("kernel"))
        equal((loaded(), chosen()), (KERNELS, "rpcrdma"), "loaded, and chosen")
    with check("DESTDIR=/ makes a choice for the next load while the C module is in use"):
        on_server("nfsd-up")
        try:
            refused("ours", "nothing is changed: rpcrdma is in use", "DESTDIR=/")
            use("ours", "/")
            equal((loaded(), chosen()), (KERNELS, "rpcrdma_rust"), "loaded, and chosen")
            for name in NAMES:
                run("modprobe", name)
                equal(loaded(), KERNELS, f"loaded after {name}")
        finally:
            on_server("nfsd-down")
        unused()
        kernel_asks(OURS)
        use("kernel")
    with check("ours does not load: the swap is undone; each name loads the kernel's own, and the log says why"):
        use("kernel", "/")
        run("modprobe", "rpcrdma")
        # As it is when it was built for another kernel.
        data = read_file(KO)
        equal(data.count(b" mod_unload "), 1, "places that say what kernel it is for")
        write_file(KO, data.replace(b" mod_unload ", b" mod_unlike "))
        refused("ours", "could not insert 'rpcrdma_rust': Exec format error",
                "nothing is changed: rpcrdma_rust does not load")
        equal(loaded(), KERNELS, "loaded afterwards")
        use("ours", "/")
        fallback("could not insert 'rpcrdma_rust': Exec format error")
    with check("a kernel without ours: each name loads the kernel's own, and the log says why", 300):
        os.unlink(KO)
        run("depmod", timeout=300)
        use("ours", "/")
        fallback(f"Module rpcrdma_rust not found in directory {MODULES}")
        kernel_asks(KERNELS)
        expect("rpcrdma_rust is not installed for" in use("status"), use("status"))
        run("modprobe", "rpcrdma")
        refused("ours", "rpcrdma_rust is not installed for")
        nothing_loaded()
    with check("uninstall leaves nothing, and says that ours is still loaded", 300):
        nothing_loaded()
        use("install")
        use("ours", "/")
        # Of a kernel that was removed since.
        gone = "/lib/modules/7.2.0-gone/updates"
        os.makedirs(gone)
        shutil.copy(f"{TREE}/scripts/use", f"{gone}/rpcrdma_rust.ko")
        run("modprobe", "svcrdma")
        text = use("uninstall")
        say(text)
        expect("rpcrdma_rust is still loaded" in text, "it does not say so")
        same_files(before, MODULES, "/etc/modprobe.d")
        expect(not os.path.exists(os.path.dirname(gone)), "the kernel that is gone has left its directory")
        expect("rpcrdma_rust" not in read(f"{MODULES}/modules.dep"), "modules.dep knows it")
        nothing_loaded()
        equal(use("uninstall"), "", "said the second time")
    with check("DESTDIR: another root gets all, loses all, and nothing is loaded"):
        nothing_loaded()
        root = TREE + "/root"
        folder = root + MODULES
        os.makedirs(f"{folder}/kernel")
        for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            shutil.copy(f"{MODULES}/{name}", folder)
        run("depmod", "-b", root, os.uname().release, timeout=300)
        os.makedirs(f"{root}/etc/modprobe.d")
        bare = files(root)
        use("install", root)
        expect("updates/rpcrdma_rust.ko" in read(f"{folder}/modules.dep"), "modules.dep does not know it")
        for word, module in (("ours", "rpcrdma_rust"), ("kernel", "rpcrdma")):
            use(word, root)
            equal(use("status", root), f"NFS over RDMA is served by {module}\n", "status")
        use("uninstall", root)
        same_files(bare, root)
        same_files(before, MODULES, "/etc/modprobe.d")
        equal(loaded(), set(), "loaded")


if NODES > 1 or MODULE != "rpcrdma_rust":
    with check("choices"):
        raise Skip("for one guest, with our module")
elif run("modprobe", "-n", "overlay", ok=False)[0]:
    with check("choices"):
        raise Skip("the kernel has no overlay file system, and nobody installs modules for one that is not used")
else:
    with machine():
        all_checks()
    with check("the guest is as it was"), mounted("4.2") as at:
        equal(loaded(), OURS, "loaded")
        os.listdir(at)
done()
