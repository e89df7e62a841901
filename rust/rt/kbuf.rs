// SPDX-License-Identifier: GPL-2.0

//! Byte buffers of a size known at run time, with allocation flags the kernel crate lacks.
//!
//! C header: [include/linux/slab.h](srctree/include/linux/slab.h)

use crate::bindings;
use core::ptr::NonNull;
use kernel::prelude::*;

/// Allocation flags as C spells them.
#[derive(Clone, Copy)]
pub(crate) struct RawGfp(u32);

impl RawGfp {
    /// May sleep and reclaim; process context without locks.
    pub(crate) const KERNEL: Self = Self(bindings::GFP_KERNEL);

    /// May sleep, and reclaim what takes no I/O. Neither touches the reserves nor insists: for paths
    /// that writeback waits for (row L30).
    pub(crate) const NOIO: Self = Self(
        bindings::GFP_NOIO
            | (1 << bindings::___GFP_NOMEMALLOC_BIT)
            | (1 << bindings::___GFP_NORETRY_BIT)
            | (1 << bindings::___GFP_NOWARN_BIT),
    );

    /// What an RPC task may use for its buffers in the current context.
    pub(crate) fn rpc_task() -> Self {
        // SAFETY: The function looks at the current task alone.
        Self(unsafe { bindings::rpc_task_gfp_mask() })
    }

    /// The flags as C takes them.
    pub(crate) const fn as_raw(self) -> u32 {
        self.0
    }
}

/// An owned, physically contiguous buffer which starts out as zeroes.
///
/// # Invariants
///
/// `ptr` points to `len` initialised bytes from kmalloc, owned by this value; `len` is not 0.
pub(crate) struct KBuf {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: Bytes have no thread affinity and the value owns them.
unsafe impl Send for KBuf {}

// SAFETY: A shared reference permits only reading.
unsafe impl Sync for KBuf {}

impl KBuf {
    /// Allocates `size` zeroed bytes, near NUMA node `node` (-1: anywhere).
    ///
    /// May sleep when `gfp` allows it. A `size` of 0 is an error.
    pub(crate) fn new(size: usize, gfp: RawGfp, node: i32) -> Result<Self> {
        if size == 0 {
            return Err(EINVAL);
        }
        // SAFETY: A null pointer makes this an allocation; nothing else is passed by address.
        let raw = unsafe {
            bindings::krealloc_node_align(
                core::ptr::null(),
                size,
                1,
                gfp.as_raw() | (1 << bindings::___GFP_ZERO_BIT),
                node,
            )
        };
        let ptr = NonNull::new(raw.cast::<u8>()).ok_or(ENOMEM)?;
        // INVARIANT: The allocator returned `size` zeroed bytes, which nobody else knows of.
        Ok(Self { ptr, len: size })
    }

    /// The size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The contents.
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: By the type invariant; the borrow keeps the buffer and forbids writes.
        unsafe { core::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The contents, writable.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: By the type invariant; the borrow is exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// The first byte.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }

    /// The first byte, for writing through a pointer (by a device, or by C code).
    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for KBuf {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the memory is from kmalloc and is freed once, here.
        unsafe { bindings::kfree(self.ptr.as_ptr().cast()) };
    }
}
