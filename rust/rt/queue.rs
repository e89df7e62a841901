// SPDX-License-Identifier: GPL-2.0

//! Work queues owned by the module.
//!
//! C header: [include/linux/workqueue.h](srctree/include/linux/workqueue.h)

use crate::bindings;
use core::{
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Release, //
    },
    workqueue::{
        self,
        Queue, //
    },
};

/// A work queue with a rescuer thread, whose items run in any order and may sleep.
///
/// Dropping it waits for all items, queued ones included.
///
/// # Invariants
///
/// The pointer is a work queue owned by this value.
pub(crate) struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Work queues may be used and destroyed from any thread.
unsafe impl Send for OwnedQueue {}

// SAFETY: Queueing is thread safe.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Makes a queue. May sleep.
    pub(crate) fn new(name: &'static CStr) -> Result<Self> {
        // SAFETY: The format takes one string, and one is passed.
        let raw = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_MEM_RECLAIM,
                0,
                name.as_char_ptr(),
            )
        };
        // INVARIANT: Nobody else knows the queue.
        NonNull::new(raw).map(Self).ok_or(ENOMEM)
    }

    /// The queue as C knows it.
    pub(crate) fn as_raw(&self) -> *mut bindings::workqueue_struct {
        self.0.as_ptr()
    }
}

impl Deref for OwnedQueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        // SAFETY: The queue lives as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; it is not used afterwards.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}

static MODULE_QUEUE: Atomic<*mut bindings::workqueue_struct> = Atomic::new(core::ptr::null_mut());
static CLOSING_QUEUE: Atomic<*mut bindings::workqueue_struct> = Atomic::new(core::ptr::null_mut());

/// Keeps the module's queues: see [`module_queue`] and [`closing_queue_raw`].
pub(crate) struct ModuleQueue {
    // The first to go: its items may use the other one.
    _closing: OwnedQueue,
    _queue: OwnedQueue,
}

impl ModuleQueue {
    /// Makes the module's queue.
    ///
    /// # Safety
    ///
    /// There is one value of this type at a time, and it outlives every use of [`module_queue`]:
    /// it is the last thing that the module's exit drops.
    pub(crate) unsafe fn new(name: &'static CStr) -> Result<Self> {
        let queue = OwnedQueue::new(name)?;
        let closing = OwnedQueue::new(c"rpcrdma_closing")?;
        MODULE_QUEUE.store(queue.as_raw(), Release);
        CLOSING_QUEUE.store(closing.as_raw(), Release);
        Ok(Self {
            _closing: closing,
            _queue: queue,
        })
    }
}

impl Drop for ModuleQueue {
    fn drop(&mut self) {
        CLOSING_QUEUE.store(core::ptr::null_mut(), Release);
        MODULE_QUEUE.store(core::ptr::null_mut(), Release);
        // What remains are kernel threads between their last `module_put` and the return from our
        // code. Each of them gives up its CPU before this returns.
        // SAFETY: Process context, no locks: this runs from the module's exit.
        unsafe { bindings::synchronize_rcu_tasks() };
    }
}

/// The module's own queue: unbound, with a rescuer, so that it makes progress under memory
/// pressure. Its items may sleep and are waited for when the module is unloaded.
///
/// Before the queue was made, the kernel's unbound queue takes its place.
pub(crate) fn module_queue() -> &'static Queue {
    NonNull::new(MODULE_QUEUE.load(Acquire)).map_or_else(workqueue::system_unbound, |queue| {
        // SAFETY: `ModuleQueue::new` promises that its queue outlives all users of this function.
        unsafe { Queue::from_raw(queue.as_ptr()) }
    })
}

/// Calls `f`, in which allocations do not reclaim memory by way of file systems: those may wait for
/// what the caller is about to do.
pub(crate) fn without_fs<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: Both functions change a flag of the current thread alone.
    let flags = unsafe { bindings::memalloc_nofs_save() };
    let result = f();
    // SAFETY: As above; the flags are those of the call above.
    unsafe { bindings::memalloc_nofs_restore(flags) };
    result
}

/// As [`module_queue`], for C functions.
pub(crate) fn module_queue_raw() -> *mut bindings::workqueue_struct {
    or_system(MODULE_QUEUE.load(Acquire))
}

/// A queue for items that tear connections down: these wait for items of the RDMA core, and of
/// [`module_queue`]. Otherwise like that.
pub(crate) fn closing_queue_raw() -> *mut bindings::workqueue_struct {
    or_system(CLOSING_QUEUE.load(Acquire))
}

fn or_system(queue: *mut bindings::workqueue_struct) -> *mut bindings::workqueue_struct {
    if queue.is_null() {
        // SAFETY: Reading a pointer that is set at boot.
        return unsafe { bindings::system_dfl_wq };
    }
    queue
}
