// SPDX-License-Identifier: GPL-2.0

//! Tunables under `/proc/sys`.
//!
//! C header: [include/linux/sysctl.h](srctree/include/linux/sysctl.h)

use crate::bindings;
use core::{
    cell::UnsafeCell,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    str::as_char_ptr_in_const_context,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

/// A number that an administrator can read and set, within limits.
pub(crate) struct Tunable {
    value: Atomic<i32>,
    min: i32,
    max: i32,
}

impl Tunable {
    /// A tunable with its default and its limits, both inclusive.
    pub(crate) const fn new(default: i32, min: i32, max: i32) -> Self {
        Self {
            value: Atomic::new(default),
            min,
            max,
        }
    }

    /// The current value.
    pub(crate) fn get(&self) -> i32 {
        self.value.load(Relaxed)
    }
}

/// `N` tunables that appear in one directory.
#[repr(transparent)]
pub(crate) struct Table<const N: usize>([UnsafeCell<bindings::ctl_table>; N]);

// SAFETY: Rust never touches the entries. What C does with them it does under its own locks.
unsafe impl<const N: usize> Sync for Table<N> {}

impl<const N: usize> Table<N> {
    /// Makes a table of names and tunables, for a static.
    pub(crate) const fn new(entries: [(&'static CStr, &'static Tunable); N]) -> Self {
        let mut table = [const { pin_init::zeroed::<bindings::ctl_table>() }; N];
        let mut i = 0;
        while i < N {
            let (name, tunable) = entries[i];
            table[i] = bindings::ctl_table {
                procname: as_char_ptr_in_const_context(name),
                data: tunable.value.as_ptr().cast(),
                // CAST: 4.
                maxlen: size_of::<i32>() as c_int,
                mode: 0o644,
                proc_handler: Some(bindings::proc_dointvec_minmax),
                poll: core::ptr::null_mut(),
                // C only reads the limits.
                extra1: core::ptr::from_ref(&tunable.min).cast_mut().cast(),
                extra2: core::ptr::from_ref(&tunable.max).cast_mut().cast(),
            };
            i += 1;
        }
        // SAFETY: `UnsafeCell<T>` has the layout of `T`, so the arrays have the same layout.
        Self(unsafe {
            core::mem::transmute_copy::<
                [bindings::ctl_table; N],
                [UnsafeCell<bindings::ctl_table>; N],
            >(&table)
        })
    }
}

/// A directory of tunables; it disappears when this is dropped.
///
/// # Invariants
///
/// `header` came from the registration of a static table.
pub(crate) struct Registration {
    header: NonNull<bindings::ctl_table_header>,
}

// SAFETY: Unregistering is allowed from any thread.
unsafe impl Send for Registration {}

// SAFETY: There is nothing to do with a shared reference.
unsafe impl Sync for Registration {}

impl Registration {
    /// Shows `table` in `/proc/sys/<path>`. May sleep.
    pub(crate) fn new<const N: usize>(
        path: &'static CStr,
        table: &'static Table<N>,
    ) -> Result<Self> {
        // SAFETY: The table is static and has `N` entries; `Table` permits C to change them.
        let header =
            unsafe { bindings::register_sysctl_sz(path.as_char_ptr(), table.0.as_ptr().cast(), N) };
        // INVARIANT: As registered just now.
        NonNull::new(header)
            .map(|header| Self { header })
            .ok_or(ENOMEM)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; it waits for handlers that are running.
        unsafe { bindings::unregister_sysctl_table(self.header.as_ptr()) };
    }
}
