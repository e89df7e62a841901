// SPDX-License-Identifier: GPL-2.0

//! Network namespaces and socket addresses.
//!
//! C header: [include/linux/socket.h](srctree/include/linux/socket.h)

use crate::{
    bindings,
    rt::cstr, //
};
use core::marker::PhantomData;
use kernel::{
    fmt,
    prelude::*,
    str::CStr, //
};

/// A network namespace that someone else keeps for `'a`.
///
/// # Invariants
///
/// The pointer is a network namespace that lives for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct Net<'a> {
    raw: *mut bindings::net,
    _keeper: PhantomData<&'a ()>,
}

impl Net<'_> {
    /// Borrows a namespace.
    ///
    /// # Safety
    ///
    /// `raw` is a network namespace, which lives for the lifetime of the result.
    pub(crate) unsafe fn from_raw(raw: *mut bindings::net) -> Self {
        // INVARIANT: As promised by the caller.
        Self {
            raw,
            _keeper: PhantomData,
        }
    }

    /// The namespace as C knows it.
    pub(crate) fn as_raw(&self) -> *mut bindings::net {
        self.raw
    }
}

/// A copy of a socket address.
///
/// # Invariants
///
/// `len` is at most the size of `storage`. All of `storage` is initialised.
#[derive(Clone, Copy)]
pub(crate) struct SockAddr {
    storage: bindings::__kernel_sockaddr_storage,
    len: usize,
}

// SAFETY: Bytes; that C sees a pointer in the same place, for its alignment, means nothing.
unsafe impl Send for SockAddr {}

// SAFETY: As above.
unsafe impl Sync for SockAddr {}

impl SockAddr {
    /// What fits.
    pub(crate) const MAX_LEN: usize = size_of::<bindings::__kernel_sockaddr_storage>();

    /// Copies an address of `len` bytes. `None` when it is longer than addresses can be.
    ///
    /// # Safety
    ///
    /// `raw` points to `len` readable bytes.
    pub(crate) unsafe fn copy_from(raw: *const bindings::sockaddr, len: usize) -> Option<Self> {
        if len > Self::MAX_LEN {
            return None;
        }
        let mut storage: bindings::__kernel_sockaddr_storage = pin_init::zeroed();
        // SAFETY: By the contract of this function for the source; the destination is large
        // enough, as was just checked.
        unsafe {
            core::ptr::copy_nonoverlapping(raw.cast::<u8>(), (&raw mut storage).cast::<u8>(), len)
        };
        // INVARIANT: Checked above.
        Some(Self { storage, len })
    }

    /// An address of no family and no length.
    pub(crate) fn none() -> Self {
        // INVARIANT: Zeroes everywhere.
        Self {
            storage: pin_init::zeroed(),
            len: 0,
        }
    }

    /// The address for C, which only reads it.
    pub(crate) fn as_ptr(&self) -> *const bindings::sockaddr {
        (&raw const self.storage).cast()
    }

    /// The size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address family.
    pub(crate) fn family(&self) -> u32 {
        // SAFETY: Every address starts with its family; the storage is initialised and aligned.
        u32::from(unsafe { *(&raw const self.storage).cast::<u16>() })
    }

    /// Whether this is a complete IPv4 or IPv6 address.
    pub(crate) fn is_inet(&self) -> bool {
        match self.family() {
            bindings::AF_INET => self.len >= size_of::<bindings::sockaddr_in>(),
            bindings::AF_INET6 => self.len >= size_of::<bindings::sockaddr_in6>(),
            _ => false,
        }
    }

    /// Whether it is an IPv6 address that means something on one link only.
    fn is_link_local(&self) -> bool {
        let sin6 = self.as_ptr().cast::<bindings::sockaddr_in6>();
        // SAFETY: The storage is initialised and as large as any address; the bytes are as good as any.
        let bytes = unsafe { (*sin6).sin6_addr.in6_u.u6_addr8 };
        self.family() == bindings::AF_INET6 && bytes[0] == 0xfe && bytes[1] & 0xc0 == 0x80
    }

    /// The number of the interface that such an address is about, if it is known.
    fn scope(&self) -> Option<u32> {
        let sin6 = self.as_ptr().cast::<bindings::sockaddr_in6>();
        // SAFETY: As above.
        let scope = unsafe { (*sin6).sin6_scope_id };
        (scope != 0 && self.is_link_local()).then_some(scope)
    }

    /// The same address; one that means something on one link only is about this interface, where it
    /// does not say so itself.
    pub(crate) fn scoped(mut self, interface: c_int) -> Self {
        if self.is_link_local() && self.scope().is_none() {
            let sin6 = (&raw mut self.storage).cast::<bindings::sockaddr_in6>();
            // CAST: Numbers of interfaces are positive.
            // SAFETY: The storage is as large as any address.
            unsafe { (*sin6).sin6_scope_id = interface as u32 };
        }
        self
    }

    /// Address and port as text. Any context.
    pub(crate) fn text(&self) -> Text {
        let mut text = [0; Text::LEN];
        match self.scope() {
            // C has a format for this, but puts the number behind the port.
            Some(scope) => {
                let ip = self.as_ptr().cast::<bindings::sockaddr_in6>();
                // SAFETY: There is room for so many bytes, and the format takes a pointer to an address
                // of IPv6 and two numbers.
                unsafe {
                    bindings::snprintf(
                        text.as_mut_ptr(),
                        Text::LEN,
                        c"[%pI6c%%%u]:%u".as_char_ptr(),
                        &raw const (*ip).sin6_addr,
                        scope,
                        c_uint::from(self.port()),
                    )
                };
            }
            None => {
                // SAFETY: There is room for so many bytes, and the format takes a pointer to an address.
                unsafe {
                    bindings::snprintf(
                        text.as_mut_ptr(),
                        Text::LEN,
                        c"%pISpc".as_char_ptr(),
                        self.as_ptr(),
                    )
                };
            }
        }
        // INVARIANT: The text is shorter than the array, or was cut, and ends with 0.
        Text(text)
    }

    /// Whether the two are the same, byte for byte.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let bytes = |addr: &Self| {
            let mut copy = [0; Self::MAX_LEN];
            // SAFETY: All of the storage is initialised, and so large.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    addr.as_ptr().cast::<u8>(),
                    copy.as_mut_ptr(),
                    Self::MAX_LEN,
                );
            }
            copy
        };
        bytes(self) == bytes(other)
    }

    /// The port, 0 if there is none or the family is unknown.
    pub(crate) fn port(&self) -> u16 {
        // SAFETY: The storage is initialised and as large as any address.
        unsafe { bindings::rpc_get_port(self.as_ptr()) }
    }
}

/// A socket address and its port as text.
///
/// # Invariants
///
/// There is a 0 among the bytes.
pub(crate) struct Text([c_char; Self::LEN]);

impl Text {
    /// Enough for an IPv6 address with scope and port.
    const LEN: usize = 96;

    /// The text that C finds fit.
    pub(crate) fn as_c_str(&self) -> &CStr {
        // SAFETY: By the type invariant.
        unsafe { cstr::from_c(self.0.as_ptr()) }
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_c_str(), f)
    }
}
