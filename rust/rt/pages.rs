// SPDX-License-Identifier: GPL-2.0

//! Pieces of memory that a scatterlist can describe.

use crate::bindings;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::page::PAGE_SIZE;

/// A physically contiguous piece of memory, as a scatterlist entry takes it: a page, an offset from
/// its start and a length. It may reach into the pages that follow the first one physically.
///
/// # Invariants
///
/// The memory stays valid, and open to access by devices, for `'a`. `len` is not 0 and
/// `offset + len` does not overflow. If the piece is passing, all of it is inside one page that
/// references can be taken to.
#[derive(Clone, Copy)]
pub(crate) struct Piece<'a> {
    page: NonNull<bindings::page>,
    offset: u32,
    len: u32,
    passing: bool,
    _memory: PhantomData<&'a [u8]>,
}

impl<'a> Piece<'a> {
    /// Describes memory.
    ///
    /// # Safety
    ///
    /// For `'a`, the `len` bytes at `offset` from the start of `page` are physically contiguous
    /// memory of the linear map, which may be read and written by devices through DMA mappings (as
    /// far as the caller of later operations has these directions in mind). `len` is not 0, and
    /// `offset + len` fits into 32 bits.
    pub(crate) unsafe fn new(page: NonNull<bindings::page>, offset: u32, len: u32) -> Self {
        // INVARIANT: As promised by the caller.
        Self {
            page,
            offset,
            len,
            passing: false,
            _memory: PhantomData,
        }
    }

    /// The same memory, whose owner may give it up while devices still use it: see
    /// [`Self::is_passing`].
    ///
    /// # Safety
    ///
    /// The piece is inside one page, which was allocated as such, so that it is freed when its
    /// last reference is dropped.
    pub(crate) unsafe fn passing(self) -> Self {
        // INVARIANT: As promised by the caller.
        Self {
            passing: true,
            ..self
        }
    }

    /// Whether `'a` is all that the owner promises. Who lets a device use the memory for longer
    /// needs a reference to the page.
    pub(crate) fn is_passing(&self) -> bool {
        self.passing
    }

    /// The page with the first byte, or one before it (see [`Self::offset`]).
    pub(crate) fn page(&self) -> NonNull<bindings::page> {
        self.page
    }

    /// Where the first byte is, counted from the start of [`Self::page`].
    pub(crate) fn offset(&self) -> u32 {
        self.offset
    }

    /// The size in bytes.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Whether nothing but the boundary of pages is between this piece and one before it that ends at `end`, as
    /// far as those who see pages one after the other are concerned.
    pub(crate) fn adjoins(&self, end: u32) -> bool {
        // CAST: A page size fits.
        (end | self.offset) & (PAGE_SIZE as u32).wrapping_sub(1) == 0
    }

    /// Where the memory ends, counted from the start of [`Self::page`].
    pub(crate) fn end(&self) -> u32 {
        self.offset.wrapping_add(self.len)
    }
}

/// What a peer may do with memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// RDMA Read (DDP read): the peer fetches.
    Read,
    /// RDMA Write (DDP write): the peer places.
    Write,
}

/// The right to some memory: as long as the value exists, nobody frees that memory or puts it to
/// another use.
///
/// # Safety
///
/// What [`Self::pieces`] describes stays, and open to what [`Self::access`] says, as long as the value
/// exists, wherever that is moved to; with the exception of pieces that are passing.
pub(crate) unsafe trait Lease: Send + 'static {
    /// Names a part of the memory.
    type Part<'a>;
    /// The pieces of a part.
    type Pieces<'l>: Iterator<Item = Piece<'l>> + Clone;

    /// What devices may do with a part. Nobody makes references to memory that may be written.
    fn access(part: &Self::Part<'_>) -> Access;

    /// Goes through the pieces of a part. Ends early when memory is missing, at once when it is not
    /// this value's.
    fn pieces<'l>(&'l self, part: &'l Self::Part<'_>) -> Self::Pieces<'l>;
}
