// SPDX-License-Identifier: GPL-2.0

//! Small wrappers of kernel facilities that the kernel crate does not wrap yet.
//!
//! Nothing here depends on another layer, nor on what RDMA and RPC are, though some of what C has for
//! them is of use here.

pub(crate) mod clock;
pub(crate) mod completion;
pub(crate) mod cstr;
pub(crate) mod debugfs;
pub(crate) mod delayed;
pub(crate) mod err;
pub(crate) mod fifo;
pub(crate) mod kbuf;
mod kunit;
pub(crate) mod module_ref;
pub(crate) mod net;
pub(crate) mod pages;
pub(crate) mod pagevec;
pub(crate) mod queue;
pub(crate) mod ratelimit;
pub(crate) mod stack;
pub(crate) mod sysctl;
pub(crate) mod ticker;
pub(crate) mod trace;
pub(crate) mod waitbit;
