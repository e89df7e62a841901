// SPDX-License-Identifier: GPL-2.0

//! Pages that change their owner.
//!
//! C header: [include/linux/mm.h](srctree/include/linux/mm.h)

use super::pages::Piece;
use crate::bindings;
use core::ptr::NonNull;
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

/// A list with room for more pages than this is not kept for the next use.
const KEPT: usize = 288;

/// Owned references to pages of the linear map, in an order that means something to the owner.
///
/// # Invariants
///
/// The value owns one reference to each page.
pub(crate) struct PageVec {
    pages: KVVec<NonNull<bindings::page>>,
}

// SAFETY: References to pages may be dropped by any thread.
unsafe impl Send for PageVec {}

// SAFETY: A shared reference gives addresses and copies bytes only.
unsafe impl Sync for PageVec {}

impl PageVec {
    /// A list without pages, and without room for any.
    pub(crate) const fn new() -> Self {
        Self {
            pages: KVVec::new(),
        }
    }

    /// A list without pages, with room for `count` of them: this one's, if it has so much. May sleep.
    pub(crate) fn with_room(mut self, count: usize) -> Result<Self> {
        self.clear();
        if self.pages.capacity() < count {
            self.pages = KVVec::with_capacity(count, GFP_KERNEL)?;
        }
        Ok(self)
    }

    /// Drops the pages. The room stays, if it is not too much to be kept for the next use.
    pub(crate) fn emptied(mut self) -> Self {
        self.clear();
        if self.pages.capacity() > KEPT {
            return Self::new();
        }
        self
    }

    fn clear(&mut self) {
        while let Some(page) = self.pages.pop() {
            // SAFETY: By the type invariant.
            unsafe { bindings::put_page(page.as_ptr()) };
        }
    }

    /// How many pages there are.
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// Appends a page, unless there is no room.
    ///
    /// # Safety
    ///
    /// The caller gives up one reference to `page`, which is a page of the linear map. When there
    /// is no room it keeps it.
    pub(crate) unsafe fn push(&mut self, page: NonNull<bindings::page>) -> Result {
        // INVARIANT: As the caller promises.
        self.pages.push_within_capacity(page).map_err(|_| ENOMEM)
    }

    /// One of the pages, which stays as long as the value.
    pub(crate) fn page(&self, index: usize) -> Option<NonNull<bindings::page>> {
        self.pages.get(index).copied()
    }

    /// Exchanges a page: both sides own what they get.
    ///
    /// # Safety
    ///
    /// The caller gives up one reference to `page`, which is a page of the linear map, unless this
    /// returns `None`.
    pub(crate) unsafe fn exchange(
        &mut self,
        index: usize,
        page: NonNull<bindings::page>,
    ) -> Option<NonNull<bindings::page>> {
        let slot = self.pages.get_mut(index)?;
        Some(core::mem::replace(slot, page))
    }

    /// `len` bytes from byte `at` on, the pages being seen as one after the other.
    ///
    /// Ends early where the pages end.
    pub(crate) fn pieces(&self, at: usize, len: usize) -> impl Iterator<Item = Piece<'_>> {
        let mut at = at;
        let mut left = len;
        core::iter::from_fn(move || {
            let page = *self.pages.get(at / PAGE_SIZE)?;
            let offset = at % PAGE_SIZE;
            let take = left.min(PAGE_SIZE - offset);
            if take == 0 {
                return None;
            }
            at = at.checked_add(take)?;
            left = left.saturating_sub(take);
            // CAST: Both are at most the size of a page.
            // SAFETY: The page stays as long as `self` is borrowed, the piece is inside it, and
            // not empty.
            Some(unsafe { Piece::new(page, offset as u32, take as u32) })
        })
    }
}

impl Default for PageVec {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for PageVec {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Pages that somebody sends, and what is in them.
///
/// # Safety
///
/// The memory that [`Self::pieces`] describes stays where it is, and open to reading by devices, as long as the
/// value exists, wherever that is moved to. What is in it may change: pages of files can be among it.
pub(crate) unsafe trait Payload: Send + 'static {
    /// The pieces of memory of `len` bytes from byte `at` on.
    fn pieces(&self, at: usize, len: usize) -> impl Iterator<Item = Piece<'_>>;

    /// How many pages it keeps.
    fn pages(&self) -> usize;

    /// Drops its pages, and gives the list that they were in. (Not the pages: files may have them, and who gets a
    /// list of pages may write to them.)
    fn into_room(self) -> PageVec;
}
