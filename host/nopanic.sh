#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Checks that rust/wire has no panic path.
#
# Compiles a copy as the kernel does (optimized, overflow checks on, panic = abort), but with every
# function kept out of line, so that each of them is in the object, and looks at what the object
# refers to. The memory functions are all that is allowed: no core::panicking, no slice index
# failure. Then the same with panics planted in nopanic.rs, which the check has to notice.
#
# usage: host/nopanic.sh          RUSTC=... chooses the compiler

set -eu
cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
rustc=${RUSTC:-rustc}

mkdir "$tmp/rust" "$tmp/rust/wire" "$tmp/host"
for file in ../rust/wire.rs ../rust/wire/*.rs nopanic.rs; do
	case $file in
	../*) copy=$tmp/${file#../} ;;
	*) copy=$tmp/host/$file ;;
	esac
	sed -e '/^ *#\[inline\]$/d' \
		-e 's/^ *\(pub \|pub(super) \)\{0,1\}\(const \)\{0,1\}fn /#[inline(never)] &/' \
		"$file" >"$copy"
done

# compile <name> [flags]: makes $tmp/<name>.o and prints the symbols that it should not refer to.
compile() {
	name=$1
	shift
	"$rustc" --edition=2021 --crate-type=rlib --crate-name=nopanic --emit=obj="$tmp/$name.o" \
		-Copt-level=2 -Cpanic=abort -Coverflow-checks=on -Ccodegen-units=1 \
		-Csymbol-mangling-version=v0 "$@" "$tmp/host/nopanic.rs"
	nm -u "$tmp/$name.o" | awk '{ print $NF }' |
		grep -vE '^(memcpy|memmove|memset|memcmp|bcmp)$' || :
}

bad=$(compile wire)
if [ -n "$bad" ]; then
	echo "nopanic: wire can panic, it refers to:" >&2
	echo "$bad" >&2
	exit 1
fi

# Everything has to be there, or the check proves nothing.
nm "$tmp/wire.o" | awk '$2 ~ /^[Tt]$/ { print $3 }' >"$tmp/symbols"
names=$(sed -n 's/^ *\(pub \|pub(super) \)\{0,1\}\(const \)\{0,1\}fn \([a-z0-9_]*\).*/\3/p' \
	../rust/wire/*.rs | sort -u)
for name in $names; do
	grep -qE "[0-9]$name([^a-z]|\$)" "$tmp/symbols" || {
		echo "nopanic: the function $name is not in the object: use it in nopanic.rs" >&2
		exit 1
	}
done

if [ -z "$(compile planted --cfg planted_panic)" ]; then
	echo "nopanic: did not notice the panics planted in nopanic.rs" >&2
	exit 1
fi
echo "nopanic: no panic path in $(wc -l <"$tmp/symbols") functions ($("$rustc" --version))"
