// SPDX-License-Identifier: GPL-2.0

//! Queues: of boxed objects that bring their own link, and of values in a ring of fixed size.
//! Putting and taking never allocates.

use super::stack::{
    Linked,
    Stack, //
};
use kernel::prelude::*;

/// A first-in-first-out list which owns its elements.
pub(crate) struct Fifo<T: Linked> {
    /// The oldest on top.
    front: Stack<T>,
    /// The newest on top; all are newer than those in `front`.
    back: Stack<T>,
}

impl<T: Linked> Fifo<T> {
    /// A queue without elements.
    pub(crate) const fn new() -> Self {
        Self {
            front: Stack::new(),
            back: Stack::new(),
        }
    }

    /// Whether there is no element.
    pub(crate) fn is_empty(&self) -> bool {
        self.front.is_empty() && self.back.is_empty()
    }

    /// Appends an element.
    pub(crate) fn push(&mut self, item: KBox<T>) {
        self.back.push(item);
    }

    /// Takes the oldest element.
    pub(crate) fn pop(&mut self) -> Option<KBox<T>> {
        if self.front.is_empty() {
            while let Some(item) = self.back.pop() {
                self.front.push(item);
            }
        }
        self.front.pop()
    }

    /// Takes the oldest element if it is wanted.
    pub(crate) fn pop_if(&mut self, wanted: impl FnOnce(&T) -> bool) -> Option<KBox<T>> {
        let item = self.pop()?;
        if wanted(&item) {
            return Some(item);
        }
        self.front.push(item);
        None
    }

    /// Takes everything.
    pub(crate) fn take(&mut self) -> Self {
        core::mem::replace(self, Self::new())
    }
}

/// A queue of at most a given number of values.
pub(crate) struct Ring<T> {
    slots: KVVec<Option<T>>,
    head: usize,
    len: usize,
}

impl<T> Ring<T> {
    /// A queue with room for `capacity` values. May sleep.
    pub(crate) fn new(capacity: usize) -> Result<Self> {
        let mut slots = KVVec::with_capacity(capacity, GFP_KERNEL)?;
        for _ in 0..capacity {
            slots.push(None, GFP_KERNEL)?;
        }
        Ok(Self {
            slots,
            head: 0,
            len: 0,
        })
    }

    /// Whether there is no value.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The index of the slot `at` slots behind the first one, which is at most once around. (Without a division: it is
    /// for each message, under a lock.)
    fn wrapped(&self, at: usize) -> usize {
        at.checked_sub(self.slots.len()).unwrap_or(at)
    }

    /// Appends a value; gives it back when there is no room.
    pub(crate) fn push(&mut self, value: T) -> Result<(), T> {
        if self.len >= self.slots.len() {
            return Err(value);
        }
        let index = self.wrapped(self.head.wrapping_add(self.len));
        match self.slots.get_mut(index) {
            Some(slot) => {
                *slot = Some(value);
                self.len = self.len.wrapping_add(1);
                Ok(())
            }
            None => Err(value),
        }
    }

    /// Takes the oldest value.
    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.len == 0 {
            return None;
        }
        let value = self.slots.get_mut(self.head)?.take();
        self.head = self.wrapped(self.head.wrapping_add(1));
        self.len = self.len.wrapping_sub(1);
        value
    }
}
