// SPDX-License-Identifier: GPL-2.0

//! Connections that are accepted: for a protocol that answers requests, and moves their payload
//! itself by RDMA Read and Write.
//!
//! A protocol has a [`Listener`], implements [`Service`] and holds a [`ServerConn`] for each peer:
//!
//! | operation | here |
//! | --- | --- |
//! | receive | [`Service::received`] gets a [`Message`] of the receive ring |
//! | read payload | [`ServerConn::read`] gives a [`Read`] that owns the pages until [`Service::read_done`] |
//! | write payload, send | [`ServerConn::reply`] gives a [`Reply`]: RDMA Writes and a Send, one chain |
//!
//! Any number of threads use a connection at the same time. None of them waits for room in the send
//! queue: what does not fit is put in line, whole, and posted by the completion that makes room
//! (row X55). [`Service::congested`] tells when there is such a line, so that no further requests are
//! taken up.
//!
//! How the pieces hold each other (arrow: owns):
//!
//! ```text
//! Listener ──> Port (Arc; what its event handler sees) ──> RawId, Incomings that nobody has accepted
//! Incoming ──> RawId, PeerEvents (Arc; what its event handler sees)
//! ServerConn ──> Incoming, Watch (probe.rs), 2 Cq, Domain (Arc)
//!   └──────────> Shared (Arc; what completion handlers see) ──> the protocol's S, Sq, pools of RxBuf, Op and RwCtx
//! Message ──> RxBuf ──> Shared (Arc)
//! Op ──> DmaBuf, RwCtx, pages or the payload of a reply
//! ```
//!
//! | file | what it holds |
//! | --- | --- |
//! | `listen.rs`, `incoming.rs` | listening, and the connections that peers ask for |
//! | `conn.rs` | how a connection is set up, and how it ends |
//! | `limits.rs` | for that: what the device allows |
//! | `rx.rs` | the receive ring |
//! | `op.rs` | operations: what is read, and replies with what is written for them; `op/rw.rs`: contexts of the RDMA core, `op/traced.rs`: what events tell |
//! | `sq.rs` | the send queue: their places in it |
//! | `probe.rs` | peers that have vanished, and memory that is idle |

mod conn;
mod incoming;
#[cfg(CONFIG_KUNIT = "y")]
mod kunit;
mod limits;
mod listen;
mod op;
mod probe;
mod rx;
mod sq;

pub(crate) use self::{
    conn::{
        ServerConn,
        Service, //
    },
    incoming::Incoming,
    limits::{
        ServerLimits,
        ServerParams, //
    },
    listen::{
        Doorbell,
        Listener, //
    },
    op::{
        Read,
        Reply, //
    },
    rx::Message, //
};
