#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Do the tests see what they are there for? Old bugs are put back into a copy of rust/wire and
rust/server/plan.rs, one at a time, and the test named for each has to fail. The rows are those of Documentation/bug-classes.md.

usage: host/planted.py [ROW...]
"""

import os
import shutil
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Row, what is wrong then, file, code, code with the bug, test file, test.
BUGS = [
    ("5", "words beyond the end of a message are looked at", "wire/backward",
     "cursor.words().ok()?;", "core::array::from_fn(|_| cursor.word().unwrap_or(0));",
     "connection", "w58_backward_call"),
    ("6", "the grant of a reply is taken as it comes", "wire/credits",
     "        max\n    } else {", "        grant\n    } else {", "connection", "w55_clamp"),
    ("24", "a chunk without segments is not refused", "wire/call",
     "Ok(0) if !limits.empty_chunks", "Ok(0) if false && !limits.empty_chunks", "call", "w35_segments"),
    ("25", "Read positions that no XDR item can have", "wire/call",
     "read.position % 4 != 0", "false && read.position % 4 != 0", "call", "w33_position"),
    ("26", "lengths are added up in 32 bits without looking", "wire/chunks",
     "sum = sum.checked_add(segment.length).ok_or(WireError::Overflow)?;",
     "sum = sum.wrapping_add(segment.length);", "reply", "w43_counts_and_lengths"),
    ("27", "how much is to be read has no limit", "wire/call",
     "if sum > limits.max_read_bytes", "if false && sum > limits.max_read_bytes", "call", "w34_read_bytes"),
    ("28", "a header longer than its buffer is not noticed", "wire/cursor",
     "let mut room = self.buf.get_mut(at..end).ok_or(WireError::NoSpace)?;",
     "let Some(mut room) = self.buf.get_mut(at..end) else { return Ok(end) };",
     "truncate", "every_buffer"),
    ("31", "16 times the number of segments, in 32 bits", "wire/chunks",
     "let size = count.checked_mul(SEGMENT).ok_or(WireError::Truncated)?;",
     "let size = (count as u32).wrapping_mul(SEGMENT as u32) as usize;", "call", "w32_counts"),
    ("25", "a position beyond the message: what follows is taken from where nothing is", "server/plan",
     "tail: call.inline.len().checked_sub(head)?,", "tail: call.inline.len().saturating_sub(head),",
     "plan", "row_25_position_beyond_the_message"),
    ("29", "the number of a page where an offset of bytes belongs", "server/plan",
     "let mut at = PAGE_SIZE;", "let mut at = 1;", "plan", "usual_calls"),
    ("30", "pages are not counted", "server/plan",
     "if shape.page_count() > max_pages || ", "if ", "plan", "row_30_more_pages_than_there_are"),
    ("W44", "a reply may say more than was offered", "wire/reply",
     "if got.length > sent.length", "if false && got.length > sent.length", "reply", "chunks_match"),
]


def main():
    bugs = [bug for bug in BUGS if not sys.argv[1:] or bug[0] in sys.argv[1:]]
    target = os.environ.get("CARGO_TARGET_DIR", TOP + "/host/target") + "/planted"
    failed = 0
    with tempfile.TemporaryDirectory() as tmp:
        shutil.copytree(TOP + "/host", tmp + "/host", ignore=shutil.ignore_patterns("target", "fuzz"))
        for row, what, file, code, bug, tests, name in bugs:
            shutil.rmtree(tmp + "/rust", ignore_errors=True)
            os.mkdir(tmp + "/rust")
            shutil.copy(TOP + "/rust/wire.rs", tmp + "/rust")
            shutil.copytree(TOP + "/rust/wire", tmp + "/rust/wire")
            os.mkdir(tmp + "/rust/server")
            shutil.copy(TOP + "/rust/server/plan.rs", tmp + "/rust/server")
            path = f"{tmp}/rust/{file}.rs"
            with open(path) as f:
                text = f.read()
            if text.count(code) != 1:
                sys.exit(f"planted: row {row}: the code is in {file}.rs {text.count(code)} times")
            with open(path, "w") as f:
                f.write(text.replace(code, bug))
            p = subprocess.run(["cargo", "test", "--locked", "--test", tests, "--", name], cwd=tmp + "/host",
                               env={**os.environ, "CARGO_TARGET_DIR": target},
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            seen = p.returncode == 101 and f"test {name} ... FAILED" in p.stdout
            failed += not seen
            print(f"planted: row {row}: {what}: {tests}.rs {name} "
                  + ("fails, as it should" if seen else f"does NOT fail\n{p.stdout[-3000:]}"), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
