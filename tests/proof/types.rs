// SPDX-License-Identifier: GPL-2.0

//! What the types of the transport do not let anybody write, found when types are checked. Not a part
//! of the module: tests/compile-fail compiles it as one, and it must fail at the marked lines.

use super::{endpoint::Endpoint, Rdma};
use crate::{
    ib::{Conn, Exposed, Exposing, Handle, Quiesced, RxMsg, Service},
    rt::pages::Lease,
    sunrpc::{PayloadLease, PinnedRqst},
    wire::{self, HeaderWriter, Segment},
};

// An RPC is completed although nobody has shown that its memory is at home (rows 2, 16).
fn complete_without_memory(rqst: PinnedRqst<Rdma>) {
    rqst.complete(0); //~ E0061
}

// The same with memory that the peer can still reach.
fn complete_while_exposed(rqst: PinnedRqst<Rdma>, set: &Exposed<Endpoint>) {
    rqst.complete(set, 0); //~ E0308
}

// The memory is taken out of the set although regions are registered.
fn take_memory_out(set: Exposed<Endpoint>) -> PayloadLease {
    set.lease //~ E0616
}

// A request counts as pinned although nobody has looked it up (row L28 of parity.md).
fn pin_without_lookup() {
    let _ = PinnedRqst::<Rdma>::new; //~ E0624
}

// Whether the set is fenced is not looked at.
fn assume_fenced(set: Exposed<Endpoint>) -> PayloadLease {
    set.fenced() //~ E0308
}

// A set ends without proof that its connection is gone (rows 3, 4, 36).
fn reclaim_early(set: Exposed<Endpoint>) {
    let _ = set.reclaim(); //~ E0061
}

// A connection counts as gone because somebody says so.
fn reclaim_from_a_live_connection(set: Exposed<Endpoint>, conn: &Conn<Endpoint>) {
    let _ = set.reclaim(conn); //~ E0308
}

// Memory of another owner is exposed.
fn expose_foreign(set: &mut Exposing<Endpoint>, page: &[u8]) {
    let _ = set.expose::<kernel::error::Error>(page, 0, || Err(kernel::error::code::EINVAL), |_| Ok(())); //~ E0308
}

// The bytes of a received message are changed, or used as a buffer (rows 7, 17).
fn write_to_message(msg: &RxMsg<Endpoint>) -> &mut [u8] {
    msg.bytes() //~ E0308
}

// A message is repeated, so that its Receive is posted twice (row 44).
fn double_message(msg: &RxMsg<Endpoint>) -> RxMsg<Endpoint> {
    msg.clone() //~ E0308
}

// Something that may not be there is used as if it was (row 19).
fn buffer_that_may_be_missing(conn: &mut Conn<Endpoint>) {
    let _ = conn.reserve().send(1); //~ E0599
}

// Nobody has looked whether there is memory for padding (row 11).
fn pad_that_may_be_missing(conn: &Conn<Endpoint>) -> Handle {
    conn.pad() //~ E0308
}

// The reply of a server says what to invalidate by any number (newtype).
fn key_from_a_length(segment: Segment) -> wire::Rkey {
    segment.length //~ E0308
}

// Parts of a header in another order: a Reply chunk before the Write list has ended.
fn header_out_of_order(buf: &mut [u8]) {
    if let Ok(writer) = HeaderWriter::new(buf, 1, 1, wire::Proc::Msg) {
        let _ = writer.no_reply_chunk(); //~ E0599
    }
}
fn header_in_order(buf: &mut [u8]) -> Result<usize, wire::WireError> {
    HeaderWriter::new(buf, 1, 1, wire::Proc::Msg)?
        .end_reads()?
        .end_writes()?
        .no_reply_chunk()
}

// A call without the check of its length (rows 5, 24 to 27, 30): there is no other way to the parts.
fn raw_segments(segments: wire::Segments<'_>) -> &[u8] {
    segments.bytes //~ E0616
}

// A server's operation is taken out of what gives it and its place in the send queue back (rows 33, 34).
fn bare_operation<S: Service>(reply: crate::ib::Reply<'_, S>) {
    let _ = reply.0; //~ E0616
}

// A connection is said to be quiet by a copy of an older proof.
fn copied_proof(proof: &Quiesced) -> Quiesced {
    proof.clone() //~ E0308
}
