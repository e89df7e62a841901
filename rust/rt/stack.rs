// SPDX-License-Identifier: GPL-2.0

//! Stacks of boxed objects that bring their own link: putting and taking never allocates.

use kernel::prelude::*;

/// Types that can be on a [`Stack`].
pub(crate) trait Linked: Sized {
    /// The field that holds the rest of the stack. It is for the stack's use alone.
    fn link(&mut self) -> &mut Option<KBox<Self>>;
}

/// A last-in-first-out list which owns its elements.
pub(crate) struct Stack<T: Linked> {
    head: Option<KBox<T>>,
    len: usize,
}

impl<T: Linked> Stack<T> {
    /// A stack without elements.
    pub(crate) const fn new() -> Self {
        Self { head: None, len: 0 }
    }

    /// How many elements there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// The top element.
    pub(crate) fn top(&self) -> Option<&T> {
        self.head.as_deref()
    }

    /// Puts an element on top.
    pub(crate) fn push(&mut self, mut item: KBox<T>) {
        *item.link() = self.head.take();
        self.head = Some(item);
        self.len = self.len.wrapping_add(1);
    }

    /// Takes the top element.
    pub(crate) fn pop(&mut self) -> Option<KBox<T>> {
        let mut item = self.head.take()?;
        self.head = item.link().take();
        self.len = self.len.wrapping_sub(1);
        Some(item)
    }

    /// Takes the first element for which `wanted` holds.
    pub(crate) fn remove_if(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Option<KBox<T>> {
        let mut passed = Self::new();
        let mut found = None;
        while let Some(item) = self.pop() {
            if wanted(&item) {
                found = Some(item);
                break;
            }
            passed.push(item);
        }
        while let Some(item) = passed.pop() {
            self.push(item);
        }
        found
    }

    /// Visits all elements, from the top.
    pub(crate) fn for_each(&mut self, mut visit: impl FnMut(&mut T)) {
        let mut next = self.head.as_mut();
        while let Some(item) = next {
            visit(item);
            next = item.link().as_mut();
        }
    }

    /// Takes everything.
    pub(crate) fn take(&mut self) -> Self {
        core::mem::replace(self, Self::new())
    }
}

impl<T: Linked> Drop for Stack<T> {
    fn drop(&mut self) {
        // One by one: dropping the head with its link in place would recurse.
        while let Some(item) = self.pop() {
            drop(item);
        }
    }
}
