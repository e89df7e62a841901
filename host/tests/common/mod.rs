// SPDX-License-Identifier: GPL-2.0

//! What several tests share: golden packets, and a second decoder to compare with.

#![allow(dead_code)]

use std::path::Path;

use rpcrdma_wire::wire::{
    CallLimits,
    Limits,
    Segment, //
};

/// The limits of a client whose lists have up to 11 segments, and the write pad.
pub(crate) const CLIENT: Limits = Limits { max_segs: 12 };

/// The limits of a server with a payload of 1 MiB.
pub(crate) const SERVER: CallLimits = CallLimits {
    max_segs: 260,
    max_read_bytes: 260 * 4096,
    empty_chunks: false,
};

/// The XID of the golden packets.
pub(crate) const XID: u32 = 0x5a3c_0f01;

/// The bytes of `testdata/<name>.hex`.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(name)
        .with_extension("hex");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines()
        .filter_map(|line| line.split('#').next())
        .flat_map(str::split_whitespace)
        .map(|byte| u8::from_str_radix(byte, 16).expect("two hex digits"))
        .collect()
}

/// All golden packets, with their names.
pub(crate) fn all_golden() -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .expect("testdata")
        .map(|entry| entry.expect("entry").path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .map(|name| (name.clone(), golden(&name)))
        .collect();
    all.sort();
    assert!(all.len() >= 24, "golden packets are missing");
    all
}

/// Big-endian words as bytes.
pub(crate) fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// A segment.
pub(crate) fn seg(handle: u32, length: u32, offset: u64) -> Segment {
    Segment {
        handle,
        length,
        offset,
    }
}

/// Chunk lists as plain vectors.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Lists {
    pub(crate) reads: Vec<(u32, Segment)>,
    pub(crate) writes: Vec<Vec<Segment>>,
    pub(crate) reply: Option<Vec<Segment>>,
}

/// A header as plain vectors.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Header {
    pub(crate) fixed: [u32; 4],
    pub(crate) lists: Lists,
}

impl Header {
    /// Encodes the way the XDR definition reads (RFC 8166, 4.1.2), with an allocation per word.
    pub(crate) fn encode(&self) -> Vec<u8> {
        fn segment(out: &mut Vec<u32>, seg: &Segment) {
            out.extend([seg.handle, seg.length]);
            out.extend([(seg.offset >> 32) as u32, (seg.offset & 0xffff_ffff) as u32]);
        }
        fn chunk(out: &mut Vec<u32>, segs: &[Segment]) {
            out.push(segs.len() as u32);
            segs.iter().for_each(|seg| segment(out, seg));
        }
        let mut out = self.fixed.to_vec();
        for (position, seg) in &self.lists.reads {
            out.extend([1, *position]);
            segment(&mut out, seg);
        }
        out.push(0);
        for segs in &self.lists.writes {
            out.push(1);
            chunk(&mut out, segs);
        }
        out.push(0);
        match &self.lists.reply {
            Some(segs) => {
                out.push(1);
                chunk(&mut out, segs);
            }
            None => out.push(0),
        }
        bytes(&out)
    }

    /// Decodes by hand, word by word; returns the header and its length.
    pub(crate) fn decode(msg: &[u8]) -> Option<(Self, usize)> {
        struct Words<'a>(&'a [u8], usize);
        impl Words<'_> {
            fn get(&mut self) -> Option<u32> {
                let end = self.1 + 4;
                if self.0.len() < end {
                    return None;
                }
                let mut value = 0;
                for i in self.1..end {
                    value = value << 8 | u32::from(self.0[i]);
                }
                self.1 = end;
                Some(value)
            }
            fn seg(&mut self) -> Option<Segment> {
                let (handle, length) = (self.get()?, self.get()?);
                let offset = u64::from(self.get()?) << 32 | u64::from(self.get()?);
                Some(seg(handle, length, offset))
            }
            fn chunk(&mut self) -> Option<Vec<Segment>> {
                let count = self.get()?;
                let mut segs = Vec::new();
                for _ in 0..count {
                    segs.push(self.seg()?);
                }
                Some(segs)
            }
        }
        let mut words = Words(msg, 0);
        let fixed = [words.get()?, words.get()?, words.get()?, words.get()?];
        let mut lists = Lists::default();
        while words.get()? != 0 {
            lists.reads.push((words.get()?, words.seg()?));
        }
        while words.get()? != 0 {
            lists.writes.push(words.chunk()?);
        }
        if words.get()? != 0 {
            lists.reply = Some(words.chunk()?);
        }
        Some((Self { fixed, lists }, words.1))
    }
}
