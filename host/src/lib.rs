// SPDX-License-Identifier: GPL-2.0

//! Host build of `rust/wire`, for tests and fuzzing. The kernel module includes the same files.

#![no_std]
#![deny(unsafe_code)]

// An inline module, because its path names a directory: `wire.rs` finds `wire/` beside itself.
#[path = "../../rust"]
mod rust {
    pub mod wire;
}

pub use rust::wire;
