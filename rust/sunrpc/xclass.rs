// SPDX-License-Identifier: GPL-2.0

//! Classes of `rpc_xprt`s: how sunrpc gets to know them, and what all new transports have in common.
//!
//! C header: [include/linux/sunrpc/xprt.h](srctree/include/linux/sunrpc/xprt.h)

use super::addr;
use crate::{
    bindings,
    rt::net::SockAddr, //
};
use core::cell::UnsafeCell;
use kernel::{
    error::to_result,
    prelude::*,
    str::as_char_ptr_in_const_context,
    sync::atomic::{
        AtomicFlag,
        Full,
        Release, //
    },
    types::ScopeGuard, //
};

/// How long a call waits for its reply, in jiffies: the same each time (rows C11, C12, B13).
pub(super) static TIMEOUT: bindings::rpc_timeout = bindings::rpc_timeout {
    to_initval: 60 * bindings::HZ,
    to_maxval: 60 * bindings::HZ,
    ..pin_init::zeroed()
};

/// What sunrpc calls to have a transport made.
pub(super) type Setup = unsafe extern "C" fn(*mut bindings::xprt_create) -> *mut bindings::rpc_xprt;

/// sunrpc's description of a class, followed by the names that mounts use for it. It is static,
/// since transports refer to their class as long as they live.
#[repr(C)]
pub(super) struct Class<const N: usize> {
    base: UnsafeCell<bindings::xprt_class>,
    netid: [*const c_char; N],
    name: &'static CStr,
    ident: c_int,
    registered: AtomicFlag,
}

const _: () = assert!(
    core::mem::offset_of!(bindings::xprt_class, netid) == core::mem::offset_of!(Class<1>, netid)
);

// SAFETY: Whoever has set `registered` writes `base`, and only while sunrpc does not know the class.
// The strings are constant.
unsafe impl<const N: usize> Sync for Class<N> {}

impl<const N: usize> Class<N> {
    /// Describes a class. The last one of `netid` has to be empty: it ends the list (rows M9, X1).
    pub(super) const fn new(name: &'static CStr, ident: c_int, netid: [&'static CStr; N]) -> Self {
        let mut list = [core::ptr::null(); N];
        let mut at = 0;
        while at < N {
            list[at] = as_char_ptr_in_const_context(netid[at]);
            at += 1;
        }
        assert!(netid[N - 1].to_bytes().is_empty());
        Self {
            base: UnsafeCell::new(pin_init::zeroed()),
            netid: list,
            name,
            ident,
            registered: AtomicFlag::new(false),
        }
    }

    /// Makes the class known to sunrpc. `-EEXIST` if another implementation is loaded. May sleep.
    ///
    /// # Safety
    ///
    /// `setup` does what sunrpc expects, until this module is unloaded.
    pub(super) unsafe fn register(&'static self, setup: Setup) -> Result<Registration> {
        if self.registered.xchg(true, Full) {
            return Err(EEXIST);
        }
        let class = self.base.get();
        // SAFETY: The flag is set for this function, and sunrpc does not know the class.
        unsafe {
            bindings::INIT_LIST_HEAD(&raw mut (*class).list);
            (*class).ident = self.ident;
            (*class).setup = Some(setup);
            (*class).owner = crate::THIS_MODULE.as_ptr();
            for (to, from) in (*class).name.iter_mut().zip(self.name.to_bytes_with_nul()) {
                *to = *from;
            }
        }
        // SAFETY: The class is complete and static.
        if let Err(error) = to_result(unsafe { bindings::xprt_register_transport(class) }) {
            self.registered.store(false, Release);
            return Err(error);
        }
        // INVARIANT: Just registered.
        Ok(Registration {
            class,
            registered: &self.registered,
        })
    }

    /// Makes a transport of this class, for `addr`, with what depends on nothing else filled in.
    /// Sleeps.
    ///
    /// # Safety
    ///
    /// `net` is valid, and `size` is at least that of an `rpc_xprt`.
    pub(super) unsafe fn alloc(
        &'static self,
        net: *mut bindings::net,
        size: usize,
        (least, most): (u32, u32),
        addr: &SockAddr,
    ) -> Result<NewXprt> {
        // SAFETY: By the contract of this function.
        let raw = unsafe { bindings::xprt_alloc(net, size, least, most) };
        if raw.is_null() {
            return Err(ENOMEM);
        }
        let new = NewXprt::new_with_data(raw, free);
        // SAFETY: Nobody else knows the transport, which is large enough for its address.
        unsafe {
            (*raw).timeout = &raw const TIMEOUT;
            (*raw).xprt_class = self.base.get();
            (*raw).addrlen = addr.len();
            core::ptr::copy_nonoverlapping(
                addr.as_ptr().cast::<u8>(),
                (&raw mut (*raw).addr).cast::<u8>(),
                addr.len(),
            );
            addr::format(raw, addr)?;
        }
        Ok(new)
    }
}

/// A transport that nobody else knows yet; freed unless it is dismissed.
pub(super) type NewXprt = ScopeGuard<*mut bindings::rpc_xprt, fn(*mut bindings::rpc_xprt)>;

fn free(raw: *mut bindings::rpc_xprt) {
    // SAFETY: Only `NewXprt` calls this: nobody else knows the transport.
    unsafe {
        addr::free(raw);
        bindings::xprt_free(raw);
    }
}

/// A class that sunrpc knows. It is unknown again when this is dropped; transports that exist stay,
/// and keep the module loaded.
///
/// # Invariants
///
/// `class` is registered, and `registered` is set for this value.
pub(crate) struct Registration {
    class: *mut bindings::xprt_class,
    registered: &'static AtomicFlag,
}

// SAFETY: Classes belong to no thread.
unsafe impl Send for Registration {}

// SAFETY: There is nothing to do with a shared reference.
unsafe impl Sync for Registration {}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::xprt_unregister_transport(self.class) };
        self.registered.store(false, Release);
    }
}
