// SPDX-License-Identifier: GPL-2.0

//! What a real client and a real server have said (see `tests/record`), as it was and changed by
//! chance, before the decoders and the second opinion that the fuzzer has of them.

#[allow(dead_code, unreachable_pub)]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::collections::HashMap;
use std::path::Path;

use rpcrdma_wire::wire::*;

/// Changed messages that are made of each recorded one.
const CHANGES: usize = 300;

/// The messages of `recorded/<name>.hex`.
fn recorded(name: &str) -> Vec<Vec<u8>> {
    let all = messages(&Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("recorded/{name}.hex")));
    assert!(all.len() > 100, "the recording of {name} is short");
    all
}

fn messages(path: &Path) -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines()
        .map(|line| line.split(' ').nth(1).expect("a name and bytes"))
        .map(|hex| {
            let digit = |n: usize| u8::from_str_radix(&hex[n..n + 2], 16).expect("two hex digits");
            (0..hex.len()).step_by(2).map(digit).collect()
        })
        .collect()
}

/// A generator of numbers, the same ones each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }

    /// A changed copy of a message.
    fn change(&mut self, msg: &[u8]) -> Vec<u8> {
        const WORDS: [u32; 12] = [
            0,
            1,
            2,
            3,
            4,
            5,
            16,
            4096,
            0x1000_0000,
            0x8000_0000,
            0xffff_fffc,
            0xffff_ffff,
        ];
        let mut msg = msg.to_vec();
        for _ in 0..=self.below(3) {
            // Mostly in the header.
            let end = if self.below(4) == 0 {
                msg.len()
            } else {
                msg.len().min(96)
            };
            let at = self.below(end);
            match self.below(6) {
                0 => msg.truncate(at),
                1 if at < msg.len() => msg[at] ^= 1 << self.below(8),
                2 => {
                    let part: Vec<u8> = msg.iter().skip(at & !3).take(16).copied().collect();
                    msg.splice(at & !3..at & !3, part);
                }
                3 => drop(msg.splice(at & !3..(at & !3) + (msg.len() - (at & !3)).min(4), [])),
                _ if msg.len() >= (at & !3) + 4 => {
                    let word = WORDS[self.below(WORDS.len())].to_be_bytes();
                    msg[at & !3..(at & !3) + 4].copy_from_slice(&word);
                }
                _ => {}
            }
        }
        msg
    }
}

#[test]
fn as_they_were() {
    for msg in recorded("calls") {
        let fixed = Fixed::decode(&msg).unwrap().0;
        assert!(
            is_backward_reply(&msg) || decode_call(&msg, &fuzz::common::SERVER).is_ok(),
            "{:#x}",
            fixed.xid
        );
    }
    let calls: HashMap<_, _> = recorded("calls")
        .into_iter()
        .map(|m| (m[..4].to_vec(), m))
        .collect();
    let mut matched = 0;
    for msg in recorded("replies") {
        if is_backward_call(&msg) {
            continue;
        }
        decode_reply(&msg, &fuzz::common::CLIENT).unwrap();
        if let Some(call) = calls.get(&msg[..4]) {
            assert_eq!(match_chunks(call, &msg), Ok(()));
            matched += 1;
        }
    }
    assert!(
        matched > 50,
        "{matched} replies have their calls in the recording"
    );
}

#[test]
fn changed() {
    let mut chance = Chance(0x5eed_5eed_5eed_5eed);
    let (calls, replies) = (recorded("calls"), recorded("replies"));
    let (mut good, mut all) = (0, 0);
    for msg in calls.iter().chain(&replies) {
        for _ in 0..CHANGES {
            let msg = chance.change(msg);
            fuzz::call(&msg);
            fuzz::reply(&msg);
            fuzz::direction(&msg);
            let call = &calls[chance.below(calls.len())];
            let mut pair = (call.len() as u16).to_be_bytes().to_vec();
            pair.extend(call);
            pair.extend(&msg);
            fuzz::chunks(&pair);
            good += usize::from(decode_call(&msg, &fuzz::common::SERVER).is_ok());
            all += 1;
        }
    }
    // A recording of Sends lacks what the connection managers say.
    for name in ["private-client", "private-server"] {
        for _ in 0..CHANGES {
            fuzz::private(&chance.change(&fuzz::common::golden(name)));
        }
    }
    // Some of both, or the changes are too many or too few.
    assert!(
        good > all / 10 && good < all * 9 / 10,
        "{good} of {all} are good"
    );
}

/// Calls as `tests/guest/fuzz.py` changes them before it sends them to a server: `host/coverage` makes them.
#[test]
#[ignore = "host/coverage runs it"]
fn as_fuzz_py_sends_them() {
    let path = std::env::var("CHANGED").expect("a file of messages");
    let (mut good, mut all) = (0, 0);
    for msg in messages(Path::new(&path)) {
        fuzz::call(&msg);
        good += usize::from(decode_call(&msg, &fuzz::common::SERVER).is_ok());
        all += 1;
    }
    assert!(
        good > all / 10 && good < all * 9 / 10,
        "{good} of {all} are good"
    );
}
