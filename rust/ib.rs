// SPDX-License-Identifier: GPL-2.0

//! Reliable RDMA connections for an upper-layer protocol, on top of the kernel's verbs.
//!
//! A protocol implements [`Protocol`] and holds a [`Conn`]. Four operations are there:
//!
//! | operation | here |
//! | --- | --- |
//! | send | [`Conn::reserve`] gives a [`TxBuf`] of the connection's send ring, [`Conn::send`] posts it |
//! | receive | [`Protocol::receive`] is called with an [`RxMsg`] of the receive ring |
//! | DDP read | the peer reads memory that [`Exposing::expose`] registered with [`Access::Read`] |
//! | DDP write | the peer writes memory that [`Exposing::expose`] registered with [`Access::Write`] |
//!
//! How the pieces hold each other (arrow: owns):
//!
//! ```text
//! Conn ──> Qp, Id (cm.rs), TxRing, 2 Cq
//!   └────> Inner (Arc; what completion handlers see) ──> the protocol's P, pools of RxMsg and Mr
//! Mr, Cq ──> Domain (Arc; the connection, for those who outlive it) ──> Pd
//! RawMr, DmaBuf ──> Pd (Arc) ──> DeviceLease
//! Spare ──> RawMr, DmaBuf, Pd of a connection that was lost, for the next one
//! ```
//!
//! Three rules carry the safety of the whole:
//!
//! * Memory that the device may touch is owned by something that only the completion, or
//!   [`Quiesced`], gives back: send buffers by the ring, receive buffers by the posted work request,
//!   memory of requests by an [`Exposed`] set with the lease that keeps it.
//! * While a [`DeviceLease`] exists, removal of the device has not finished.
//! * [`Conn::shutdown`] ends with the queue pair and both completion queues gone. Only then does it
//!   hand out [`Quiesced`], the proof that neither the device nor a completion handler comes back.
//!
//! C headers: [include/rdma/ib_verbs.h](srctree/include/rdma/ib_verbs.h),
//! [include/rdma/rdma_cm.h](srctree/include/rdma/rdma_cm.h)

mod cm;
mod conn;
mod cq;
mod device;
mod dma;
mod domain;
mod expose;
#[cfg(CONFIG_KUNIT = "y")]
mod fake;
mod inner;
mod kunit_conn;
mod kunit_expose;
mod kunit_passive;
mod kunit_server;
mod limits;
mod listen;
mod lost;
mod mr;
mod op;
mod patience;
mod pd;
mod probe;
mod raw_mr;
mod rx;
mod rxmem;
mod server;
mod server_limits;
mod spare;
mod sq;
mod srx;
#[cfg(CONFIG_KUNIT = "y")]
mod trial;
#[cfg(CONFIG_KUNIT = "y")]
mod trial_server;
mod tx;

use kernel::str::CStr;

#[cfg(CONFIG_KUNIT = "y")]
pub(crate) use self::fake::{
    Asked,
    Fake, //
};
pub(crate) use self::{
    conn::{
        Conn,
        Protocol,
        Quiesced, //
    },
    device::{
        device_news,
        ByDevice,
        Client,
        Connections,
        DeviceName, //
    },
    dma::MESSAGE_BYTES,
    expose::{
        Exposed,
        Exposing, //
    },
    inner::Cx,
    limits::{
        Attempt,
        Limits,
        Params, //
    },
    listen::{
        Doorbell,
        Incoming,
        Listener, //
    },
    lost::Lost,
    op::{
        Read,
        Reply, //
    },
    raw_mr::{
        Access,
        Handle, //
    },
    rx::RxMsg,
    server::{
        ServerConn,
        Service, //
    },
    server_limits::{
        ServerLimits,
        ServerParams, //
    },
    spare::Spare,
    srx::Message,
    tx::Regions, //
};

/// The name under which `rdma resource show` lists our objects (row M7).
const OWNER: &CStr = c"rpcrdma_rust";
