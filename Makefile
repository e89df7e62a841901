# SPDX-License-Identifier: GPL-2.0

KVER ?=

all:
	@scripts/kernel build $(if $(KVER),--kver $(KVER))

.PHONY: all
