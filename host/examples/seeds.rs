// SPDX-License-Identifier: GPL-2.0

//! Writes the golden packets as files, for the fuzzer to start from: `seeds <directory>`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let dir = std::env::args().nth(1).expect("usage: seeds <directory>");
    let messages = Path::new(&dir).join("messages");
    let pairs = Path::new(&dir).join("pairs");
    fs::create_dir_all(&messages)?;
    fs::create_dir_all(&pairs)?;
    for (name, msg) in common::all_golden() {
        fs::write(messages.join(&name), &msg)?;
        // A call, its length in front, with a reply to it.
        let call = common::golden(match name.as_str() {
            "reply-long" | "reply-short-unused" => "call-reply",
            _ => "call-write",
        });
        let mut pair = (call.len() as u16).to_be_bytes().to_vec();
        pair.extend(call);
        pair.extend(msg);
        fs::write(pairs.join(&name), pair)?;
    }
    Ok(())
}
