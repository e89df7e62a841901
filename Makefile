# SPDX-License-Identifier: GPL-2.0
#
# make                 build rpcrdma_rust.ko for the newest 7.2.y kernel of Debian 13 backports
# make KVER=7.2.11     ... for another kernel of the archive (a release string or its beginning)
# make KDIR=/dir       ... against a prepared object tree
# make update          look up the newest kernel again; `make` remembers what it found
# make check           formatting, clippy, and which code may be unsafe
# make install         as root: into /lib/modules; `scripts/use ours` then makes the kernel load it
# make uninstall       as root: remove what that has left, for all kernels
# make demo|test|bench
# make soak HOURS=2    random work and accidents, our module on both ends; SEED= repeats one
# make parity         which rows of Documentation/parity.md no test vouches for
# make test-more       guest tests that the 20 minutes of `make test` have no room for
# make test-long       what tests/run has a mark for: more files and pairings, hours on a small machine
# make debug           build a debug kernel (once, more than 10 minutes) and the module for it
# make kcsan           the same of a kernel that looks for data races
# make test-debug      the guest tests of both and some for it alone, over rxe and siw
# make clean           remove what was built in this directory
# make distclean       ... and the cache directory: toolchain, kernels, guests

kernel := scripts/kernel
target := $(if $(KDIR),--kdir '$(KDIR)') $(if $(KVER),--kver '$(KVER)')
# Variables for the kernel's make.
passed := $(foreach v,V W C CLIPPY KRUSTFLAGS KCFLAGS,$(if $($(v)),'$(v)=$($(v))'))

all:
	@$(kernel) build $(target) modules $(passed)

update:
	@$(kernel) update
	@$(MAKE) --no-print-directory all

check:
	@scripts/check $(target)

install uninstall:
	@scripts/use $@

demo:
	@scripts/demo

test:
	@tests/all

test-more: all
	@tests/run --more

test-long:
	@tests/all --long

debug kcsan:
	@$(kernel) $@ $(if $(KVER),--kver '$(KVER)')

test-debug: debug
	@tests/checkers
	@tests/run --kernel debug --rdma rxe,siw

soak: all
	@tests/run --client rust --server rust --soak '$(or $(HOURS),1)' $(if $(SEED),--seed '$(SEED)') soak.py

bench:
	@scripts/bench

parity:
	@scripts/parity

# What Kbuild and bindgen leave behind; needs no kernel.
clean:
	@find . \( -name .git -o -path ./host \) -prune -o -type f \( -name '*.o' -o -name '*.ko' \
		-o -name '*.mod' -o -name '*.mod.c' -o -name '*.rsi' -o -name '.*.cmd' \
		-o -name '.*.d' -o -name '.module-common.c' \) -exec rm -f {} +
	@rm -rf rust/generated Module.symvers modules.order host/target .tmp_*

distclean: clean
	@$(kernel) distclean

.PHONY: all update check install uninstall demo test test-more test-long debug kcsan test-debug soak bench parity clean distclean
