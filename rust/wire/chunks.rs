// SPDX-License-Identifier: GPL-2.0

//! Views of the three chunk lists.
//!
//! RFC 8166, sections 3.4 and 4.3; rows W5 to W7. [`ChunkLists::decode`] checks once that the lists
//! lie within the message; the views then hand out one element at a time, straight from the
//! message, without storing anything. The number of elements needs no limit here, because each
//! takes at least eight bytes of a message that was received; callers apply theirs.

use super::cursor::Cursor;
use super::{
    Segment,
    WireError,
    READ_ENTRY,
    SEGMENT, //
};

/// The three lists that follow the fixed part of a [`Proc::Msg`](super::Proc::Msg) or
/// [`Proc::NoMsg`](super::Proc::NoMsg) header.
#[derive(Clone, Debug)]
pub struct ChunkLists<'a> {
    /// The Read list: data that the receiver of this message may read.
    pub reads: ReadSegments<'a>,
    /// The Write list: where results may be, or were, written.
    pub writes: WriteChunks<'a>,
    /// The Reply chunk: where a long reply may be, or was, written.
    pub reply: Option<Chunk<'a>>,
}

impl<'a> ChunkLists<'a> {
    /// Splits what follows the fixed part of a header into the lists and the inline body.
    pub fn decode(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), WireError> {
        let mut cursor = Cursor::new(bytes);

        let reads = ReadSegments {
            entries: list(&mut cursor, |cursor| cursor.words::<5>().map(|_| ()))?,
        };
        let writes = WriteChunks {
            chunks: list(&mut cursor, |cursor| Chunk::decode(cursor).map(|_| ()))?,
        };
        let reply = if cursor.more()? {
            Some(Chunk::decode(&mut cursor)?)
        } else {
            None
        };

        Ok((
            Self {
                reads,
                writes,
                reply,
            },
            cursor.rest(),
        ))
    }

    /// Whether no list holds anything.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.writes.is_empty() && self.reply.is_none()
    }

    /// Every segment of the three lists, in the order of the message.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + 'a {
        let reads = self.reads.clone().map(|read| read.segment);
        let writes = self.writes.clone().flat_map(|chunk| chunk.segments());
        let reply = self.reply.into_iter().flat_map(|chunk| chunk.segments());
        reads.chain(writes).chain(reply)
    }
}

/// Reads an XDR optional-data list and returns its bytes without the terminator.
fn list<'a>(
    cursor: &mut Cursor<'a>,
    mut item: impl FnMut(&mut Cursor<'a>) -> Result<(), WireError>,
) -> Result<&'a [u8], WireError> {
    let start = *cursor;
    let mut end = start.rest().len();
    while cursor.more()? {
        item(cursor)?;
        end = cursor.rest().len();
    }
    let mut items = start;
    let len = start
        .rest()
        .len()
        .checked_sub(end)
        .ok_or(WireError::Truncated)?;
    items.take(len)
}

/// One entry of the Read list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadSegment {
    /// Where in the RPC message the data belongs; 0 for a chunk that holds the message itself.
    pub position: u32,
    /// Where the data is.
    pub segment: Segment,
}

/// The entries of a Read list, in the order of the message (row W5).
///
/// # Invariants
///
/// `entries` was walked once: it is a sequence of whole entries.
#[derive(Clone, Debug, Default)]
pub struct ReadSegments<'a> {
    entries: &'a [u8],
}

impl<'a> ReadSegments<'a> {
    /// Whether there is no entry.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Groups the entries into chunks, in ascending order of position.
    ///
    /// A peer may list the chunks, and even their segments, in any order (row W40). Finding the
    /// next position looks at each entry, so walking all chunks takes time quadratic in the number
    /// of entries: apply a limit first, as [`decode_call`](super::decode_call) does.
    #[inline]
    pub fn chunks(&self) -> ReadChunks<'a> {
        ReadChunks {
            list: self.clone(),
            from: Some(0),
        }
    }
}

impl Iterator for ReadSegments<'_> {
    type Item = ReadSegment;

    #[inline]
    fn next(&mut self) -> Option<ReadSegment> {
        let mut cursor = Cursor::new(self.entries);
        let [_, position, handle, length, high, low] = cursor.words().ok()?;
        self.entries = cursor.rest();
        Some(ReadSegment {
            position,
            segment: Segment::from_words([handle, length, high, low]),
        })
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len(), Some(self.len()))
    }
}

impl ExactSizeIterator for ReadSegments<'_> {
    // The provided method has an assertion in it.
    #[inline]
    fn len(&self) -> usize {
        self.entries.len() / READ_ENTRY
    }
}

impl core::iter::FusedIterator for ReadSegments<'_> {}

/// The Read chunks of a list, in ascending order of position; see [`ReadSegments::chunks`].
#[derive(Clone, Debug)]
pub struct ReadChunks<'a> {
    list: ReadSegments<'a>,
    /// The lowest position not visited yet.
    from: Option<u32>,
}

impl<'a> Iterator for ReadChunks<'a> {
    type Item = ReadChunk<'a>;

    fn next(&mut self) -> Option<ReadChunk<'a>> {
        let from = self.from?;
        let position = self
            .list
            .clone()
            .map(|read| read.position)
            .filter(|position| *position >= from)
            .min();
        self.from = position.and_then(|position| position.checked_add(1));
        Some(ReadChunk {
            position: position?,
            list: self.list.clone(),
        })
    }
}

impl core::iter::FusedIterator for ReadChunks<'_> {}

/// The Read list entries of one position.
#[derive(Clone, Debug)]
pub struct ReadChunk<'a> {
    position: u32,
    list: ReadSegments<'a>,
}

impl<'a> ReadChunk<'a> {
    /// Where in the RPC message the data belongs.
    #[inline]
    pub fn position(&self) -> u32 {
        self.position
    }

    /// The segments, in the order of the message.
    #[inline]
    pub fn segments(&self) -> impl Iterator<Item = Segment> + 'a {
        let position = self.position;
        self.list
            .clone()
            .filter(move |read| read.position == position)
            .map(|read| read.segment)
    }

    /// The sum of the segment lengths, unless it exceeds 32 bits.
    pub fn total(&self) -> Result<u32, WireError> {
        total(self.segments())
    }
}

/// The chunks of a Write list, in the order of the message (row W6).
///
/// # Invariants
///
/// `chunks` was walked once: it is a sequence of whole chunks, each after its discriminator.
#[derive(Clone, Debug, Default)]
pub struct WriteChunks<'a> {
    chunks: &'a [u8],
}

impl WriteChunks<'_> {
    /// Whether there is no chunk.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

impl<'a> Iterator for WriteChunks<'a> {
    type Item = Chunk<'a>;

    #[inline]
    fn next(&mut self) -> Option<Chunk<'a>> {
        let mut cursor = Cursor::new(self.chunks);
        cursor.word().ok()?;
        let chunk = Chunk::decode(&mut cursor).ok()?;
        self.chunks = cursor.rest();
        Some(chunk)
    }
}

impl core::iter::FusedIterator for WriteChunks<'_> {}

/// A Write chunk or the Reply chunk: a counted array of segments (row W7).
///
/// # Invariants
///
/// `segments` is a sequence of whole segments.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    segments: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// Reads the count and the segments.
    #[inline]
    fn decode(cursor: &mut Cursor<'a>) -> Result<Self, WireError> {
        let count = usize::try_from(cursor.word()?).map_err(|_| WireError::Truncated)?;
        let size = count.checked_mul(SEGMENT).ok_or(WireError::Truncated)?;
        Ok(Self {
            segments: cursor.take(size)?,
        })
    }

    /// The segments, in the order of the message.
    #[inline]
    pub fn segments(&self) -> Segments<'a> {
        Segments {
            bytes: self.segments,
        }
    }

    /// The sum of the segment lengths, unless it exceeds 32 bits.
    #[inline]
    pub fn total(&self) -> Result<u32, WireError> {
        total(self.segments())
    }

    /// The segments as they look after `len` bytes were written into them in order (row W22).
    ///
    /// Fails with [`WireError::Overflow`] if the chunk has no room for `len` bytes.
    pub fn filled(&self, len: u32) -> Result<Filled<'a>, WireError> {
        let mut left = len;
        for segment in self.segments() {
            left = left.saturating_sub(segment.length);
        }
        if left != 0 {
            return Err(WireError::Overflow);
        }
        Ok(Filled {
            segments: self.segments(),
            left: len,
        })
    }
}

/// Adds up segment lengths.
#[inline]
fn total(segments: impl Iterator<Item = Segment>) -> Result<u32, WireError> {
    let mut sum = 0u32;
    for segment in segments {
        sum = sum.checked_add(segment.length).ok_or(WireError::Overflow)?;
    }
    Ok(sum)
}

/// The segments of a [`Chunk`].
#[derive(Clone, Debug, Default)]
pub struct Segments<'a> {
    bytes: &'a [u8],
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    #[inline]
    fn next(&mut self) -> Option<Segment> {
        let mut cursor = Cursor::new(self.bytes);
        let words = cursor.words().ok()?;
        self.bytes = cursor.rest();
        Some(Segment::from_words(words))
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len(), Some(self.len()))
    }
}

impl ExactSizeIterator for Segments<'_> {
    // The provided method has an assertion in it.
    #[inline]
    fn len(&self) -> usize {
        self.bytes.len() / SEGMENT
    }
}

impl core::iter::FusedIterator for Segments<'_> {}

/// The segments of a chunk with the lengths that a responder reports; see [`Chunk::filled`].
#[derive(Clone, Debug)]
pub struct Filled<'a> {
    segments: Segments<'a>,
    left: u32,
}

impl Iterator for Filled<'_> {
    type Item = Segment;

    #[inline]
    fn next(&mut self) -> Option<Segment> {
        let mut segment = self.segments.next()?;
        segment.length = segment.length.min(self.left);
        self.left = self.left.saturating_sub(segment.length);
        Some(segment)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        self.segments.size_hint()
    }
}

impl ExactSizeIterator for Filled<'_> {
    // The provided method has an assertion in it.
    #[inline]
    fn len(&self) -> usize {
        self.segments.len()
    }
}

impl core::iter::FusedIterator for Filled<'_> {}
