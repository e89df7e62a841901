// SPDX-License-Identifier: GPL-2.0

//! Connections that are made: for a protocol that sends requests, and exposes memory to the peer.
//!
//! A protocol implements [`Protocol`] and holds a [`Conn`]. Four operations are there:
//!
//! | operation | here |
//! | --- | --- |
//! | send | [`Conn::reserve`] gives a [`TxBuf`](tx::TxBuf) of the connection's send ring, whose `send` posts it |
//! | receive | [`Protocol::receive`] is called with an [`RxMsg`] of the receive ring |
//! | DDP read, write | the peer reads, or writes, memory that [`Exposing::expose`] registered; which of them the [`Lease`](crate::rt::pages::Lease) says |
//!
//! How the pieces hold each other (arrow: owns):
//!
//! ```text
//! Conn ──> Id (cm.rs; the queue pair is its), TxRing, 2 Cq
//!   └────> Inner (Arc; what completion handlers see) ──> the protocol's P, pools of RxBuf and MrCtx
//! MrCtx ──> RawMr, Domain (Arc)
//! RawMr ──> Pd (Arc)
//! Spare ──> RawMr, DmaBuf, Pd of a connection that was lost, for the next one
//! ```
//!
//! | file | what it holds |
//! | --- | --- |
//! | `conn.rs` | how a connection is set up, and how it ends |
//! | `cm.rs`, `limits.rs` | for that: steps of the connection manager, and what the device allows |
//! | `inner.rs` | what completion handlers use |
//! | `tx.rs`, `rx.rs` | the rings |
//! | `expose.rs` | memory that the peer may reach |
//! | `mr.rs`, `raw_mr.rs` | the regions that it consists of: as parts of a connection, and by themselves |
//! | `patience.rs` | what is done when the device does not end the peer's access |
//! | `spare.rs` | what the next connection gets |

mod cm;
mod conn;
mod expose;
mod inner;
#[cfg(CONFIG_KUNIT = "y")]
mod kunit;
mod limits;
mod mr;
mod patience;
mod raw_mr;
mod rx;
mod spare;
mod tx;

pub(crate) use self::{
    conn::{
        Conn,
        Protocol,
        Quiesced, //
    },
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
    raw_mr::Handle,
    rx::{
        RemoteInvalidated,
        RxMsg, //
    },
    spare::Spare,
    tx::Regions, //
};
