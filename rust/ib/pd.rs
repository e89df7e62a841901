// SPDX-License-Identifier: GPL-2.0

//! A protection domain: what memory is registered and mapped for. It may outlive a connection, and
//! serve the next one over the same device (see [`super::active::spare`]).

use super::device::DeviceLease;
use crate::{
    bindings,
    rt::{
        module_ref::ModuleRef,
        stack::{
            Linked,
            Stack, //
        }, //
    },
};
use core::ptr::NonNull;
use kernel::{
    error::from_err_ptr,
    pr_err_once,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            AtomicFlag,
            Relaxed,
            Release, //
        },
        Arc,
        UniqueArc, //
    },
};

/// A protection domain with the lease on its device.
///
/// Every mapping and every memory region holds an `Arc` of it, so it goes last. Dropping it sleeps. What a
/// device has refused to let go of stays in it, and then it goes with the device.
///
/// # Invariants
///
/// `raw` is a protection domain of the lease's device.
pub(super) struct Pd {
    raw: NonNull<bindings::ib_pd>,
    lkey: u32,
    /// Connections of which something is left.
    connections: Atomic<u32>,
    /// The device kept something that was to go.
    tainted: AtomicFlag,
    /// A queue pair may be at work for ever.
    live: AtomicFlag,
    /// There until it is dropped.
    kept: Option<KBox<Kept>>,
    lease: DeviceLease,
}

// SAFETY: Protection domains may be used from any thread; the rest is `Send`.
unsafe impl Send for Pd {}

// SAFETY: As above, and the rest is `Sync`.
unsafe impl Sync for Pd {}

impl Pd {
    /// Allocates a protection domain. Sleeps.
    pub(super) fn new(lease: DeviceLease) -> Result<Arc<Self>> {
        // Memory first, so that nothing can fail once there is a protection domain.
        let memory = UniqueArc::<Self>::new_uninit(GFP_KERNEL)?;
        let kept = KBox::<Kept>::new_uninit(GFP_KERNEL)?;
        // SAFETY: The lease keeps the device. The name lives for ever.
        let raw = from_err_ptr(unsafe {
            bindings::__ib_alloc_pd(lease.as_raw(), 0, super::OWNER.as_char_ptr())
        })?;
        let raw = NonNull::new(raw).ok_or(ENOMEM)?;
        // SAFETY: Just allocated.
        let lkey = unsafe { (*raw.as_ptr()).local_dma_lkey };
        // INVARIANT: Just allocated, for the lease's device.
        let this = Self {
            raw,
            lkey,
            connections: Atomic::new(0),
            tainted: AtomicFlag::new(false),
            live: AtomicFlag::new(false),
            kept: Some(KBox::write(kept, Kept { raw, link: None })),
            lease,
        };
        Ok(UniqueArc::write(memory, this).into())
    }

    /// A connection begins to use it.
    pub(super) fn enter(&self) {
        self.connections.add(1, Relaxed);
    }

    /// Nothing is left of a connection that used it: neither queues nor regions.
    pub(super) fn leave(&self) {
        self.connections.fetch_sub(1, Release);
    }

    /// The device did not let go of a region or a queue pair. As long as no other queue pair comes
    /// into the protection domain, no peer can make use of that.
    pub(super) fn taint(&self) {
        self.tainted.store(true, Relaxed);
    }

    /// The device did not stop a queue pair: buffers that it may use are never given back.
    pub(super) fn set_live(&self) {
        self.taint();
        // Whoever gives back what the queue pair could use is told that it is gone after this.
        self.live.store(true, Relaxed);
    }

    /// Whether a queue pair may be at work that was to be gone.
    pub(super) fn is_live(&self) -> bool {
        self.live.load(Relaxed)
    }

    /// Whether another connection can use it: nothing of an earlier one can be reached by its peer.
    pub(super) fn is_clean(&self) -> bool {
        // Pairs with the release in `leave`.
        self.connections.load(Acquire) == 0 && !self.tainted.load(Relaxed)
    }

    /// The protection domain as C knows it.
    pub(super) fn as_raw(&self) -> *mut bindings::ib_pd {
        self.raw.as_ptr()
    }

    /// The key of all memory that is mapped for the device.
    pub(super) fn lkey(&self) -> u32 {
        self.lkey
    }

    /// The lease on the device.
    pub(super) fn lease(&self) -> &DeviceLease {
        &self.lease
    }
}

/// A protection domain that goes with its device, or with us.
pub(super) struct Kept {
    raw: NonNull<bindings::ib_pd>,
    link: Option<KBox<Self>>,
}

// SAFETY: Protection domains may be used from any thread.
unsafe impl Send for Kept {}

impl Linked for Kept {
    fn link(&mut self) -> &mut Option<KBox<Self>> {
        &mut self.link
    }
}

/// Frees protection domains. Sleeps.
///
/// # Safety
///
/// They have no users, and their device is there.
pub(super) unsafe fn free_kept(mut kept: Stack<Kept>) {
    while let Some(kept) = kept.pop() {
        // SAFETY: As the caller promises.
        unsafe { free(kept.raw) };
    }
}

/// Frees a protection domain. Sleeps.
///
/// # Safety
///
/// It has no user, and its device is there.
unsafe fn free(raw: NonNull<bindings::ib_pd>) {
    // SAFETY: As the caller promises.
    let ret = unsafe { bindings::ib_dealloc_pd_user(raw.as_ptr(), core::ptr::null_mut()) };
    if ret != 0 {
        pr_err_once!("a protection domain is leaked: its device does not free it\n");
        // It is shown with our name, which is in the module.
        if let Some(module) = ModuleRef::try_get() {
            module.into_raw();
        }
    }
}

impl Drop for Pd {
    fn drop(&mut self) {
        if self.tainted.load(Relaxed) {
            // The next one may get the number of one that is freed, and with it what the device has kept. So
            // that goes with the device.
            if let Some(kept) = self.kept.take() {
                // SAFETY: Whoever uses the protection domain holds an `Arc` of this, so there is no user.
                unsafe { self.lease.inherit(kept) };
            }
            return;
        }
        // SAFETY: As above. The lease, a field, is dropped after this.
        unsafe { free(self.raw) };
    }
}
