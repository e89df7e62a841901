// SPDX-License-Identifier: GPL-2.0

//! Error numbers that the kernel crate has no constants for.
//!
//! C header: [include/uapi/asm-generic/errno.h](srctree/include/uapi/asm-generic/errno.h)

use crate::bindings;
use kernel::prelude::*;

macro_rules! errno {
    ($($(#[$doc:meta])* $name:ident = $value:ident;)*) => {
        $(
            $(#[$doc])*
            #[allow(dead_code)]
            #[inline]
            pub(crate) fn $name() -> Error {
                // CAST: Error numbers are below 4096.
                Error::from_errno(-(bindings::$value as c_int))
            }
        )*
    };
}

errno! {
    /// Invalid slot: no congestion credit.
    ebadslt = EBADSLT;
    /// Protocol error.
    eproto = EPROTO;
    /// Message too long.
    emsgsize = EMSGSIZE;
    /// Protocol not supported.
    eprotonosupport = EPROTONOSUPPORT;
    /// Operation not supported.
    eopnotsupp = EOPNOTSUPP;
    /// Address family not supported.
    eafnosupport = EAFNOSUPPORT;
    /// Address already in use.
    eaddrinuse = EADDRINUSE;
    /// Cannot assign requested address.
    eaddrnotavail = EADDRNOTAVAIL;
    /// Network is down.
    enetdown = ENETDOWN;
    /// Network is unreachable.
    enetunreach = ENETUNREACH;
    /// Connection dropped by the network.
    enetreset = ENETRESET;
    /// Connection aborted.
    econnaborted = ECONNABORTED;
    /// Connection reset by the peer.
    econnreset = ECONNRESET;
    /// No buffer space available.
    enobufs = ENOBUFS;
    /// Already connected.
    eisconn = EISCONN;
    /// Not connected.
    enotconn = ENOTCONN;
    /// Shut down.
    eshutdown = ESHUTDOWN;
    /// Timed out.
    etimedout = ETIMEDOUT;
    /// Connection refused.
    econnrefused = ECONNREFUSED;
    /// Host is down.
    ehostdown = EHOSTDOWN;
    /// No route to host.
    ehostunreach = EHOSTUNREACH;
    /// Operation already in progress.
    ealready = EALREADY;
    /// Operation now in progress.
    einprogress = EINPROGRESS;
}
