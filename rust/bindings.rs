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
#![cfg_attr(CONFIG_RUSTC_HAS_UNNECESSARY_TRANSMUTES, allow(unnecessary_transmutes))]

use kernel::ffi;
use pin_init::{
    MaybeZeroable,
    Zeroable, //
};

// Whatever is defined here, in the generated files too, hides what has the same name there.
pub use kernel::bindings::*;

type __kernel_size_t = usize;
type __kernel_ssize_t = isize;
type __kernel_ptrdiff_t = isize;

// SAFETY: The unit is its storage and nothing else, and zeroes are a value of that.
unsafe impl<Storage: Zeroable> Zeroable for __BindgenBitfieldUnit<Storage> {}

// SAFETY: The array has no elements of its own.
unsafe impl<T> Zeroable for __IncompleteArrayField<T> {}

include!("generated/bindings.rs");
include!("generated/helpers.rs");
