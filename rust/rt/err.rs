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
    /// Operation not supported.
    eopnotsupp = EOPNOTSUPP;
    /// Address family not supported.
    eafnosupport = EAFNOSUPPORT;
    /// Address already in use.
    eaddrinuse = EADDRINUSE;
    /// Network is down.
    enetdown = ENETDOWN;
    /// Network is unreachable.
    enetunreach = ENETUNREACH;
    /// Connection aborted.
    econnaborted = ECONNABORTED;
    /// Connection reset by the peer.
    econnreset = ECONNRESET;
    /// No buffer space available.
    enobufs = ENOBUFS;
    /// Not connected.
    enotconn = ENOTCONN;
    /// Timed out.
    etimedout = ETIMEDOUT;
    /// Connection refused.
    econnrefused = ECONNREFUSED;
    /// No route to host.
    ehostunreach = EHOSTUNREACH;
}
