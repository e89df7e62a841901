// SPDX-License-Identifier: GPL-2.0

//! RPC over RDMA transport (RFC 8166, 8167, 8797) for the kernel's NFS client and server.

#![crate_name = "rpcrdma_rust"]

use kernel::prelude::*;

pub(crate) mod bindings;
#[allow(dead_code)]
mod rt;
#[allow(dead_code, unused_imports)]
mod sunrpc;

module! {
    type: RpcRdma,
    name: "rpcrdma_rust",
    authors: ["The rpcrdma-rust authors"],
    description: "RPC over RDMA transport",
    license: "GPL",
    alias: ["rpcrdma", "rpcrdma6", "xprtrdma"],
}

/// The loaded module: what it registered, in the order of teardown.
#[pin_data]
struct RpcRdma {}

impl kernel::InPlaceModule for RpcRdma {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pr_info!("RPC over RDMA transport loaded\n");
        try_pin_init!(Self {})
    }
}
