// SPDX-License-Identifier: GPL-2.0

//! Reliable RDMA connections for an upper-layer protocol, on top of the kernel's verbs.
//!
//! There are two kinds, and neither knows of the other:
//!
//! | connections that | are made: [`active`] | are accepted: [`passive`] |
//! | --- | --- | --- |
//! | a protocol implements | [`Protocol`] | [`Service`] |
//! | and holds | a [`Conn`] | a [`ServerConn`], made of an [`Incoming`] of its [`Listener`] |
//! | payload | the peer reads and writes what is exposed to it | we read and write what the peer exposes |
//!
//! What both are made of is here (arrow: owns):
//!
//! ```text
//! Cq ──> Domain (Arc; the connection, for those who outlive it) ──> Pd
//! DmaBuf ──> Pd (Arc) ──> DeviceLease
//! ```
//!
//! Three rules carry the safety of the whole:
//!
//! * Memory that the device may touch is owned by something that only the completion, or
//!   [`Quiesced`], gives back: send buffers by the ring, receive buffers by the posted work request,
//!   memory of requests by an [`Exposed`] set with the lease that keeps it.
//! * While a [`DeviceLease`] exists, removal of the device has not finished.
//! * [`Conn::shutdown`] and [`Conn::retire`] end with the queue pair and both completion queues gone. Only then do they
//!   hand out [`Quiesced`], the proof that neither the device nor a completion handler comes back.
//!
//! C headers: [include/rdma/ib_verbs.h](srctree/include/rdma/ib_verbs.h),
//! [include/rdma/rdma_cm.h](srctree/include/rdma/rdma_cm.h)

mod active;
mod cq;
mod device;
mod dma;
mod domain;
#[cfg(CONFIG_KUNIT = "y")]
mod kunit;
mod lost;
mod passive;
mod pd;
mod rxmem;

use kernel::str::CStr;

#[cfg(CONFIG_KUNIT = "y")]
pub(crate) use self::kunit::{
    Asked,
    Fake, //
};
pub(crate) use self::{
    active::{
        Attempt,
        Conn,
        Cx,
        Exposed,
        Exposing,
        Handle,
        Limits,
        Params,
        Protocol,
        Quiesced,
        Regions,
        RemoteInvalidated,
        RxMsg,
        Spare, //
    },
    device::{
        device_news,
        ByDevice,
        Client,
        Connections,
        DeviceName, //
    },
    dma::MESSAGE_BYTES,
    lost::Lost,
    passive::{
        Doorbell,
        Incoming,
        Listener,
        Message,
        Read,
        Reply,
        ServerConn,
        ServerLimits,
        ServerParams,
        Service, //
    },
};

/// The name under which `rdma resource show` lists our objects (row M7).
const OWNER: &CStr = c"rpcrdma_rust";
