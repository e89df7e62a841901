// SPDX-License-Identifier: GPL-2.0

//! Host build of `rust/wire`, for tests and fuzzing. The kernel module includes the same files.

#![no_std]
#![deny(unsafe_code)]
// Beyond the kernel's lints: what must not be in code that reads bytes from a peer.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::todo,
    clippy::unreachable,
    clippy::unwrap_used
)]

// An inline module, because its path names a directory: `wire.rs` finds `wire/` beside itself.
#[path = "../../rust"]
mod rust {
    pub mod wire;
}

pub use rust::wire;
