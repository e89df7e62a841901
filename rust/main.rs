// SPDX-License-Identifier: GPL-2.0

//! RPC over RDMA transport (RFC 8166, 8167, 8797) for the kernel's NFS client and server.
//!
//! ```text
//! wire            headers and chunk lists: pure functions over bytes
//! rt              small wrappers of kernel facilities
//! ib, sunrpc      safe RDMA connections, safe RPC transports
//! trace           the tracepoints, for all of these but wire and rt
//! client, server  the RPC transports, in safe Rust, on top of all of these
//! ```

#![crate_name = "rpcrdma_rust"]

use kernel::prelude::*;

pub(crate) mod bindings;
mod client;
mod ib;
mod rt;
mod server;
mod sunrpc;
mod trace;
pub mod wire;

module! {
    type: RpcRdma,
    name: "rpcrdma_rust",
    authors: ["The rpcrdma-rust authors"],
    description: "RPC over RDMA transport",
    license: "GPL",
    alias: ["rpcrdma", "rpcrdma6", "svcrdma", "xprtrdma"],
}

/// The loaded module: what it registered, in the order of teardown.
#[pin_data]
struct RpcRdma {
    tunables: Option<rt::sysctl::Registration>,
    class: sunrpc::ClassRegistration,
    backchannel: sunrpc::ClassRegistration,
    server: sunrpc::SvcRegistration<server::RdmaServer>,
    _server_tunables: rt::sysctl::Registration,
    _connections: rt::debugfs::File<ib::Connections>,
    #[pin]
    devices: ib::Client,
    queue: rt::queue::ModuleQueue,
}

impl kernel::InPlaceModule for RpcRdma {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // SAFETY: The module is initialised once, and this field is dropped last.
            queue: unsafe { rt::queue::ModuleQueue::new(c"rpcrdma_rust") }?,
            // SAFETY: The module is initialised once.
            devices <- unsafe { ib::Client::new(c"rpcrdma_rust") },
            // Without them no server: they are part of its interface (row M17).
            _server_tunables: server::register_tunables()?,
            server: sunrpc::SvcRegistration::new()?,
            class: sunrpc::register_client::<client::Rdma>()?,
            backchannel: sunrpc::register_bc::<server::RdmaServer>()?,
            // The client does without (row M17).
            tunables: client::register_tunables().ok(),
            // The last: nothing can fail behind it. Who has a file open keeps the module, but for a module
            // that fails to load.
            _connections: rt::debugfs::File::new(c"rpcrdma_rust", c"connections"),
        }? Error)
    }
}
