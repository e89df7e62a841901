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
    cpu::CpuId,
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

/// Parts of a counter. More processors than that share them.
const PARTS: usize = 32;

/// Part of a counter, in a cache line of its own.
#[repr(align(64))]
struct Part(Atomic<u64>);

/// A number that only grows, until an administrator writes to it: that makes it 0.
///
/// It is the sum of its parts, modulo 2^64. Each processor adds to one of them, so that connections
/// whose threads run on different processors do not wait for each other here.
pub(crate) struct Counter([Part; PARTS]);

impl Counter {
    /// A counter at 0.
    pub(crate) const fn new() -> Self {
        Self([const { Part(Atomic::new(0)) }; PARTS])
    }

    /// Counts `n`.
    pub(crate) fn add(&self, n: u64) {
        // It is of no importance if the thread moves to another processor meanwhile.
        // CAST: 32 bits fit.
        let cpu = CpuId::current().as_u32() as usize;
        if let Some(part) = self.0.get(cpu % PARTS) {
            part.0.add(n, Relaxed);
        }
    }

    fn get(&self) -> u64 {
        let parts = self.0.iter().map(|part| part.0.load(Relaxed));
        parts.fold(0, u64::wrapping_add)
    }

    fn reset(&self) {
        for part in &self.0 {
            part.0.store(0, Relaxed);
        }
    }
}

/// A number that goes up and down, for an administrator to read. It is exact at any time: all of it is
/// in one part of a counter, because a reader of several might see what went and not what came.
#[repr(transparent)]
pub(crate) struct Gauge(Counter);

impl Gauge {
    /// A gauge at 0.
    pub(crate) const fn new() -> Self {
        Self(Counter::new())
    }

    /// There are `n` more.
    pub(crate) fn add(&self, n: u64) {
        let [part, ..] = &self.0 .0;
        part.0.add(n, Relaxed);
    }

    /// There are `n` fewer.
    pub(crate) fn sub(&self, n: u64) {
        // Arithmetic is modulo 2^64.
        self.add(n.wrapping_neg());
    }

    /// How many there are, for tests.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(crate) fn get(&self) -> u64 {
        self.0.get()
    }
}

/// Shows a counter, or resets it.
///
/// # Safety
///
/// The kernel calls it for an entry that [`Table::of`] made of a counter or gauge, with room for
/// `*len` bytes at `buf`.
unsafe extern "C" fn show_counter(
    table: *const bindings::ctl_table,
    write: c_int,
    buf: *mut c_void,
    len: *mut usize,
    pos: *mut bindings::loff_t,
) -> c_int {
    // SAFETY: `data` is a static counter, or a gauge, which is one.
    let counter = unsafe { &*(*table).data.cast::<Counter>() };
    if write != 0 {
        counter.reset();
        return 0;
    }
    // 64 bits have at most 20 digits.
    let mut text: [c_char; 24] = [0; 24];
    // SAFETY: The format takes one number, and the buffer has the size that is passed. The rest is
    // by the contract of this function: no more than `*len` bytes are written.
    unsafe {
        let written = bindings::snprintf(
            text.as_mut_ptr(),
            text.len(),
            c"%llu\n".as_char_ptr(),
            counter.get(),
        );
        let text = text
            .get(..usize::try_from(written).unwrap_or(0))
            .unwrap_or(&[]);
        let rest = usize::try_from(*pos)
            .ok()
            .and_then(|pos| text.get(pos..))
            .unwrap_or(&[]);
        let count = rest.len().min(*len);
        core::ptr::copy_nonoverlapping(rest.as_ptr(), buf.cast(), count);
        *len = count;
        // CAST: A few bytes.
        *pos = (*pos).wrapping_add(count as bindings::loff_t);
    }
    0
}

/// What an entry of a [`Table`] shows.
#[derive(Clone, Copy)]
pub(crate) enum Entry {
    /// A number that can be set.
    Tunable(&'static Tunable),
    /// A number that can be reset.
    Counter(&'static Counter),
    /// A number that can only be read.
    Gauge(&'static Gauge),
}

impl Entry {
    const fn row(self, name: &'static CStr) -> bindings::ctl_table {
        let mut row = pin_init::zeroed::<bindings::ctl_table>();
        row.procname = as_char_ptr_in_const_context(name);
        row.mode = 0o644;
        match self {
            Self::Tunable(tunable) => {
                row.data = tunable.value.as_ptr().cast();
                // CAST: 4.
                row.maxlen = size_of::<i32>() as c_int;
                row.proc_handler = Some(bindings::proc_dointvec_minmax);
                // C only reads the limits.
                row.extra1 = core::ptr::from_ref(&tunable.min).cast_mut().cast();
                row.extra2 = core::ptr::from_ref(&tunable.max).cast_mut().cast();
            }
            Self::Counter(counter) => {
                row.data = core::ptr::from_ref(counter).cast_mut().cast();
                // CAST: 8.
                row.maxlen = size_of::<u64>() as c_int;
                row.proc_handler = Some(show_counter);
            }
            Self::Gauge(gauge) => {
                row = Self::Counter(&gauge.0).row(name);
                row.mode = 0o444;
            }
        }
        row
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
            table[i] = Entry::Tunable(entries[i].1).row(entries[i].0);
            i += 1;
        }
        Self::wrap(table)
    }

    /// Makes a table of names and entries of all kinds, for a static.
    pub(crate) const fn of(entries: [(&'static CStr, Entry); N]) -> Self {
        let mut table = [const { pin_init::zeroed::<bindings::ctl_table>() }; N];
        let mut i = 0;
        while i < N {
            table[i] = entries[i].1.row(entries[i].0);
            i += 1;
        }
        Self::wrap(table)
    }

    const fn wrap(table: [bindings::ctl_table; N]) -> Self {
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
