// SPDX-License-Identifier: GPL-2.0

//! A protection domain: what memory is registered and mapped for. It may outlive a connection, and
//! serve the next one over the same device (see [`super::spare`]).

use super::device::DeviceLease;
use crate::{
    bindings,
    rt::module_ref::ModuleRef, //
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
/// device has refused to let go of stays in it, and then it is never freed.
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
        // SAFETY: The lease keeps the device. The name lives for ever.
        let raw = from_err_ptr(unsafe {
            bindings::__ib_alloc_pd(lease.as_raw(), 0, super::conn::OWNER.as_char_ptr())
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

    /// The device did not stop a queue pair: what it may use is never given back, and nobody gets a lease on
    /// the device any more. Sleeps.
    pub(super) fn set_live(&self) {
        self.taint();
        // Whoever gives back what the queue pair could use is told that it is gone after this.
        self.live.store(true, Relaxed);
        self.lease.distrust();
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

impl Drop for Pd {
    fn drop(&mut self) {
        // The next one may get the number of one that is freed, and with it what the device has kept.
        let kept = self.tainted.load(Relaxed) || {
            // SAFETY: Whoever uses the protection domain holds an `Arc` of this, and the device has kept
            // nothing, so there is no user. The lease, a field, is dropped after this.
            unsafe { bindings::ib_dealloc_pd_user(self.raw.as_ptr(), core::ptr::null_mut()) != 0 }
        };
        if kept {
            pr_err_once!("a protection domain is leaked: the device has kept something in it\n");
            // It is shown with our name, which is in the module.
            if let Some(module) = ModuleRef::try_get() {
                module.into_raw();
            }
        }
    }
}
