// SPDX-License-Identifier: GPL-2.0

//! Bindings to the C side of the kernel: the sunrpc and RDMA headers, generated at build time.
//!
//! For the use of `rt`, `ib` and `sunrpc` alone; nothing else may name this module. Types that
//! the kernel crate binds too are the kernel crate's, so that its wrappers accept them.

#![allow(
    clippy::all,
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_imports
)]
#![cfg_attr(
    CONFIG_RUSTC_HAS_UNNECESSARY_TRANSMUTES,
    allow(unnecessary_transmutes)
)]

mod raw {
    use kernel::ffi;
    use pin_init::{
        MaybeZeroable,
        Zeroable, //
    };

    // What this file defines comes before what the two globs bring.
    pub use super::helpers::*;
    pub use kernel::bindings::*;

    type __kernel_size_t = usize;
    type __kernel_ssize_t = isize;
    type __kernel_ptrdiff_t = isize;

    // SAFETY: The unit holds nothing but its storage.
    unsafe impl<Storage: Zeroable> Zeroable for __BindgenBitfieldUnit<Storage> {}

    include!("generated/bindings.rs");
}

mod helpers {
    use super::raw::*;
    use kernel::ffi;

    include!("generated/helpers.rs");
}

pub use raw::*;
