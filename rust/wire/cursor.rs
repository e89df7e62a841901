// SPDX-License-Identifier: GPL-2.0

//! Bounds-checked reading and writing of big-endian words.

use super::WireError;

/// Bytes per XDR word.
pub(super) const WORD: usize = 4;

/// Reads words off the front of a byte slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte of `bytes`.
    #[inline]
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read yet.
    #[inline]
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Reads the next `N` words, or nothing at all.
    #[inline]
    pub(super) fn words<const N: usize>(&mut self) -> Result<[u32; N], WireError> {
        let mut rest = self.rest;
        let mut words = [0; N];
        for word in &mut words {
            let (bytes, tail) = rest.split_first_chunk().ok_or(WireError::Truncated)?;
            *word = u32::from_be_bytes(*bytes);
            rest = tail;
        }
        self.rest = rest;
        Ok(words)
    }

    /// Reads one word.
    #[inline]
    pub(super) fn word(&mut self) -> Result<u32, WireError> {
        let [word] = self.words()?;
        Ok(word)
    }

    /// Reads the XDR boolean that says whether another item follows.
    ///
    /// XDR knows 0 and 1 only. Like the C transport, every word but 0 counts as "yes": a peer gains
    /// nothing by it, and a reader that is liberal here agrees with the other side about what is a
    /// list.
    #[inline]
    pub(super) fn more(&mut self) -> Result<bool, WireError> {
        Ok(self.word()? != 0)
    }

    /// Takes `len` bytes.
    #[inline]
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }
}

/// Writes words into a byte slice.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    /// Starts at the first byte of `buf`.
    #[inline]
    pub(super) fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, len: 0 }
    }

    /// How many bytes have been written.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Appends `words`; on failure nothing is appended.
    #[inline]
    pub(super) fn put<const N: usize>(&mut self, words: [u32; N]) -> Result<(), WireError> {
        self.len = self.store(self.len, words)?;
        Ok(())
    }

    /// Overwrites the word at byte `at`, which must have been written before.
    #[inline]
    pub(super) fn patch(&mut self, at: usize, word: u32) -> Result<(), WireError> {
        if at >= self.len {
            return Err(WireError::NoSpace);
        }
        self.store(at, [word]).map(|_| ())
    }

    /// Stores `words` from byte `at` on and returns the position behind them.
    #[inline]
    fn store<const N: usize>(&mut self, at: usize, words: [u32; N]) -> Result<usize, WireError> {
        let end = N
            .checked_mul(WORD)
            .and_then(|size| at.checked_add(size))
            .ok_or(WireError::NoSpace)?;
        let mut room = self.buf.get_mut(at..end).ok_or(WireError::NoSpace)?;
        for word in words {
            let (bytes, tail) = room.split_first_chunk_mut().ok_or(WireError::NoSpace)?;
            *bytes = word.to_be_bytes();
            room = tail;
        }
        Ok(end)
    }
}
