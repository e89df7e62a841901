#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Coverage-guided fuzzing of rust/wire with libFuzzer, on a stable compiler.
#
# usage: host/fuzz.sh [seconds]           for all targets together; 60 by default
#        host/fuzz.sh TARGET FILE...      only these inputs
#
# The corpus starts with the golden packets and is kept in host/fuzz/corpus; an input that crashes a
# target is kept in host/fuzz/crashes, and the exit status is 1. Those that are there come first the
# next time. Needs cargo and a C++ compiler.

set -eu
one=
case ${1:-} in
*[!0-9]*)
	one=$1
	shift
	[ $# -gt 0 ] || { echo "fuzz: which inputs for $one?" >&2; exit 2; }
	# Where they are, seen from anywhere.
	for file; do
		shift
		file=$(realpath "$file")
		set -- "$@" "$file"
	done
	;;
esac
cd "$(dirname "$0")"
seconds=${1:-60}
targets="reply chunks call direction private writer"

for cxx in "${CXX:-c++}" g++ clang++ clang++-19; do
	command -v "$cxx" >/dev/null && break
	cxx=
done
[ -n "$cxx" ] || { echo "fuzz: no C++ compiler (c++, g++ or clang++) for libFuzzer" >&2; exit 2; }
command -v cargo >/dev/null || { echo "fuzz: no cargo" >&2; exit 2; }

# Instrumentation as cargo-fuzz asks for it, without the sanitizers, which a stable compiler lacks.
# With a target given, build scripts are left alone.
host=$("${RUSTC:-rustc}" -vV | sed -n 's/^host: //p')
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags="$flags -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
flags="$flags -Cllvm-args=-sanitizer-coverage-pc-table"
flags="$flags -Cllvm-args=-sanitizer-coverage-trace-compares"
echo "fuzz: building"
build=${CARGO_TARGET_DIR:-target}/fuzz
CXX=$cxx RUSTFLAGS=$flags cargo build --quiet --locked --release --target "$host" \
	--target-dir "$build" --manifest-path fuzz/Cargo.toml
cargo run --quiet --locked --example seeds "$build/seeds"
bin=$build/$host/release
once="-timeout=5 -rss_limit_mb=1024"
# shellcheck disable=SC2086 # Two options.
[ -z "$one" ] || exec "$bin/$one" $once "$@"

log=$(mktemp)
trap 'rm -rf "$log" "$log.d"' EXIT

# First the proof that coverage guides it: from nothing, a planted bug is found.
mkdir "$log.d"
if "$bin/planted" -seed=1 -max_total_time=60 -max_len=300 \
	-artifact_prefix="$log.d/" "$log.d" >"$log" 2>&1; then
	tail -n 3 "$log"
	echo "fuzz: the planted bug was not found: the fuzzer does not see coverage" >&2
	exit 1
fi
grep -q "planted bug" "$log" || { cat "$log"; exit 1; }
runs=$(sed -n 's/^#\([0-9]*\).*NEW.*/\1/p' "$log" | tail -n 1)
echo "fuzz: the planted bug was found after about $runs inputs"

# Show the log of a target that failed, and how to give it the same input again, here or in the toolchain root.
complain() {
	tail -n 40 "$log" >&2
	echo "fuzz: $1 FAILED; the input again, from the top of the tree:" \
		"${IN_TOOLCHAIN:+scripts/kernel run -- env CARGO_HOME=$CARGO_HOME }host/fuzz.sh $1 host/${2:-fuzz/crashes/$1/*}" >&2
	status=1
}

each=$((seconds / $(echo "$targets" | wc -w)))
[ "$each" -ge 1 ] || each=1
status=0
for target in $targets; do
	case $target in
	chunks) seeds=$build/seeds/pairs ;;
	*) seeds=$build/seeds/messages ;;
	esac
	mkdir -p "fuzz/corpus/$target" "fuzz/crashes/$target"
	known=0
	for file in "fuzz/crashes/$target"/*; do
		[ -e "$file" ] || continue
		known=$((known + 1))
		# shellcheck disable=SC2086
		"$bin/$target" $once "$file" >"$log" 2>&1 && continue
		complain "$target" "$file"
	done
	[ $known = 0 ] || echo "fuzz: $target: $known inputs that crashed it once"
	# shellcheck disable=SC2086
	if "$bin/$target" -max_total_time="$each" -max_len=2048 $once \
		-print_final_stats=1 -artifact_prefix="fuzz/crashes/$target/" \
		"fuzz/corpus/$target" "$seeds" >"$log" 2>&1; then
		runs=$(sed -n 's/^stat::number_of_executed_units: //p' "$log")
		cov=$(sed -n 's/.*\(INITED\|DONE\) *\(cov: [0-9]* ft: [0-9]*\).*/\2/p' "$log" |
			sed 'N;s/\n/ -> /')
		echo "fuzz: $target: $runs inputs in $each s, $cov"
	else
		complain "$target" "$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)"
	fi
done
exit $status
