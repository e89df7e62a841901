// SPDX-License-Identifier: GPL-2.0

//! References that keep this module loaded.
//!
//! C header: [include/linux/module.h](srctree/include/linux/module.h)

use crate::bindings;

/// A reference on this module: while it exists, the module's code and statics stay.
///
/// # Invariants
///
/// The value owns one reference count of the module.
pub(crate) struct ModuleRef(());

impl ModuleRef {
    /// Takes a reference; `None` when the module is on its way out.
    pub(crate) fn try_get() -> Option<Self> {
        // SAFETY: The module's own descriptor is valid while the module's code runs.
        if unsafe { bindings::try_module_get(crate::THIS_MODULE.as_ptr()) } {
            // INVARIANT: One reference was just taken.
            Some(Self(()))
        } else {
            None
        }
    }

    /// Gives the reference to whoever calls [`Self::from_raw`] later.
    pub(crate) fn into_raw(self) {
        core::mem::forget(self);
    }

    /// Takes back a reference.
    ///
    /// # Safety
    ///
    /// The caller owns one reference from [`Self::into_raw`] and gives it up.
    pub(crate) unsafe fn from_raw() -> Self {
        // INVARIANT: Handed over by the caller.
        Self(())
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a reference to drop. The module's exit waits for
        // the code that returns from here: see `queue::ModuleQueue`.
        unsafe { bindings::module_put(crate::THIS_MODULE.as_ptr()) };
    }
}
