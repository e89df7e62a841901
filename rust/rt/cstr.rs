// SPDX-License-Identifier: GPL-2.0

//! Strings that C has made.

use crate::bindings;
use kernel::{
    prelude::*,
    str::CStr, //
};

/// The string at an address. Does what [`CStr::from_ptr`] does, which has a way to panic.
///
/// # Safety
///
/// `text` is a string that ends with 0, and neither changes its length nor goes for the lifetime of
/// the result.
pub(crate) unsafe fn from_c<'a>(text: *const c_char) -> &'a CStr {
    // SAFETY: As the caller promises. There are as many bytes as the string is long, and the 0. They
    // are in memory, so their number does not wrap.
    unsafe {
        let len = bindings::strlen(text).wrapping_add(1);
        CStr::from_bytes_with_nul_unchecked(core::slice::from_raw_parts(text.cast(), len))
    }
}
