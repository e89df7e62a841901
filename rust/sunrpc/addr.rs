// SPDX-License-Identifier: GPL-2.0

//! The strings that show a transport's address (row C20).

use super::{
    xprt::Xprt,
    ClientTransport, //
};
use crate::{
    bindings,
    rt::{
        net::SockAddr,
        ratelimit::say, //
    },
};
use kernel::prelude::*;

const ADDR: usize = bindings::rpc_display_format_t_RPC_DISPLAY_ADDR as usize;
const PORT: usize = bindings::rpc_display_format_t_RPC_DISPLAY_PORT as usize;
const PROTO: usize = bindings::rpc_display_format_t_RPC_DISPLAY_PROTO as usize;
const HEX_ADDR: usize = bindings::rpc_display_format_t_RPC_DISPLAY_HEX_ADDR as usize;
const HEX_PORT: usize = bindings::rpc_display_format_t_RPC_DISPLAY_HEX_PORT as usize;
const NETID: usize = bindings::rpc_display_format_t_RPC_DISPLAY_NETID as usize;

/// The strings that come from the heap.
const OWNED: [usize; 4] = [ADDR, PORT, HEX_ADDR, HEX_PORT];

/// Enough for an IPv6 address with a scope.
const TEXT: usize = 128;

/// Stores a string from the heap; `-ENOMEM` if there is none.
///
/// # Safety
///
/// `raw` is a transport that nobody else knows. `text` is null, or from kmalloc and given up.
unsafe fn set(raw: *mut bindings::rpc_xprt, which: usize, text: *mut c_char) -> Result {
    // SAFETY: By the contract of this function; `which` is one of the constants above.
    if let Some(string) = unsafe { (*raw).address_strings.get_mut(which) } {
        *string = text;
    }
    if text.is_null() {
        Err(ENOMEM)
    } else {
        Ok(())
    }
}

/// Formats a port in decimal or hexadecimal. The result is from kmalloc, or null.
fn port_text(port: u16, hex: bool) -> *mut c_char {
    let format = if hex { c"%4hx" } else { c"%u" };
    // SAFETY: Both formats take one number.
    unsafe {
        bindings::kasprintf(
            bindings::GFP_KERNEL,
            format.as_char_ptr(),
            c_uint::from(port),
        )
    }
}

/// Makes all strings of a new transport. For an unknown family there are none.
///
/// On failure [`free`] cleans up.
///
/// # Safety
///
/// `raw` is a transport that nobody else knows.
pub(super) unsafe fn format(raw: *mut bindings::rpc_xprt, addr: &SockAddr) -> Result {
    if !addr.is_inet() {
        say!(
            pr_err,
            "a server's address is of the family {}, which is unknown\n",
            addr.family()
        );
        return Ok(());
    }
    let sockaddr = addr.as_ptr();
    let hex = if addr.family() == bindings::AF_INET {
        // SAFETY: The address is a complete IPv4 address.
        let sin = unsafe { (*sockaddr.cast::<bindings::sockaddr_in>()).sin_addr.s_addr };
        // SAFETY: The format takes one number.
        unsafe {
            bindings::kasprintf(
                bindings::GFP_KERNEL,
                c"%08x".as_char_ptr(),
                u32::from_be(sin),
            )
        }
    } else {
        // SAFETY: The address is a complete IPv6 address, and the format takes a pointer to one.
        unsafe {
            let sin6 = sockaddr.cast::<bindings::sockaddr_in6>();
            bindings::kasprintf(
                bindings::GFP_KERNEL,
                c"%pi6".as_char_ptr(),
                &raw const (*sin6).sin6_addr,
            )
        }
    };
    let netid = if addr.family() == bindings::AF_INET {
        c"rdma"
    } else {
        c"rdma6"
    };
    let mut text: [c_char; TEXT] = [0; TEXT];
    // SAFETY: The function reads a complete address, and writes a string to at most `TEXT` bytes.
    unsafe { bindings::rpc_ntop(sockaddr, text.as_mut_ptr(), TEXT) };
    // SAFETY: The buffer ends with 0 in any case. The rest is by the contract of this function.
    unsafe {
        (*raw).address_strings[PROTO] = c"rdma".as_char_ptr();
        (*raw).address_strings[NETID] = netid.as_char_ptr();
        set(raw, HEX_ADDR, hex)?;
        set(
            raw,
            ADDR,
            bindings::kstrdup(text.as_ptr(), bindings::GFP_KERNEL),
        )?;
        set(raw, PORT, port_text(addr.port(), false))?;
        set(raw, HEX_PORT, port_text(addr.port(), true))
    }
}

/// Frees the strings.
///
/// # Safety
///
/// `raw` is a transport that nobody uses any more.
pub(super) unsafe fn free(raw: *mut bindings::rpc_xprt) {
    for which in OWNED {
        // SAFETY: By the contract of this function. All of these are from kmalloc: from here, or
        // from sunrpc's `dstaddr` attribute.
        unsafe {
            if let Some(string) = (*raw).address_strings.get_mut(which) {
                bindings::kfree((*string).cast());
                *string = core::ptr::null();
            }
        }
    }
}

/// Row C119: rpcbind has told the port.
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
pub(super) unsafe extern "C" fn set_port<T: ClientTransport>(
    raw: *mut bindings::rpc_xprt,
    port: c_ushort,
) {
    // SAFETY: sunrpc calls this with a transport of this type, while a task uses it.
    let xprt = unsafe { Xprt::<T>::from_raw(raw) };
    // SAFETY: The address is as large as addresses can be.
    unsafe { bindings::rpc_set_port((&raw mut (*raw).addr).cast(), port) };
    for (which, hex) in [(PORT, false), (HEX_PORT, true)] {
        let text = port_text(port, hex);
        if text.is_null() {
            // The old string is wrong, but better than none.
            continue;
        }
        // Readers look at the strings under RCU.
        let guard = xprt.lock_transport();
        // SAFETY: The lock serialises this with itself, and nobody else changes these strings.
        let old = unsafe {
            let string = (&raw mut (*raw).address_strings)
                .cast::<*const c_char>()
                .add(which);
            kernel::sync::barrier::smp_wmb();
            let old = string.read();
            string.write_volatile(text);
            old
        };
        drop(guard);
        // SAFETY: The string was from kmalloc, and new readers do not find it. This is process
        // context: rpcbind's reply is handled by a task.
        unsafe { bindings::kfree_rcu_mightsleep(old.cast()) };
    }
}
