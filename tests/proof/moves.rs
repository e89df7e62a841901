// SPDX-License-Identifier: GPL-2.0

//! What the types of the transport do not let anybody write, found when moves and borrows are checked.
//! Not a part of the module: tests/compile-fail compiles it as one, and it must fail at the marked
//! lines.

use super::{endpoint::Endpoint, Rdma};
use crate::{
    ib::{Conn, Exposed, Exposing, Message, Quiesced, RemoteInvalidated, Reply, RxMsg, ServerConn, Service},
    rt::pagevec::PageVec,
    sunrpc::{PayloadLease, PinnedRqst},
};

// A send buffer is used again before its Send completed (rows 2, 12).
fn send_twice(conn: &mut Conn<Endpoint>) {
    let Some(tx) = conn.reserve() else { return };
    let _ = tx.send(1);
    let _ = tx.send(1); //~ E0382
}

fn write_after_send(conn: &mut Conn<Endpoint>) {
    let Some(mut tx) = conn.reserve() else { return };
    let _ = tx.send(1);
    let _ = tx.split(); //~ E0382
}

fn keep_the_buffer(conn: &mut Conn<Endpoint>) {
    let Some(mut tx) = conn.reserve() else { return };
    let (bytes, _) = tx.split();
    let _ = tx.send(1); //~ E0505
    bytes.fill(0);
}

// Two send buffers at once: the slot of the first would be given out twice (row 8).
fn reserve_twice(conn: &mut Conn<Endpoint>) {
    let first = conn.reserve();
    let second = conn.reserve(); //~ E0499
    drop((first, second));
}

// The same memory is registered twice (row 16).
fn expose_twice(lease: PayloadLease) {
    let first = Exposing::<Endpoint>::new(lease);
    let second = Exposing::<Endpoint>::new(lease); //~ E0382
    drop((first, second));
}

// A region is on the free list and registered (row 16).
fn use_after_post(conn: &mut Conn<Endpoint>, set: Exposing<Endpoint>) {
    let Some(tx) = conn.reserve() else { return };
    let _ = tx.send_exposing(1, set, |set| drop(set));
    let _ = set.cancel(); //~ E0382
}

// An RPC gets its memory back while the peer can reach it (rows 2, 16).
fn complete_while_exposing(rqst: PinnedRqst<Rdma>, lease: PayloadLease) {
    let set = Exposing::<Endpoint>::new(lease);
    rqst.complete(&lease, 0); //~ E0382
    drop(set);
}

fn complete_twice(rqst: PinnedRqst<Rdma>, lease: &PayloadLease) {
    rqst.complete(lease, 0);
    rqst.complete(lease, 0); //~ E0382
}

// Somebody looks at a request that was completed, and unpinned with that (row L29 of parity.md).
fn look_at_completed(rqst: PinnedRqst<Rdma>, lease: &PayloadLease) {
    rqst.complete(lease, 0);
    let _ = rqst.slot(); //~ E0382
}

// A set is used after it was fenced.
fn look_at_fenced(set: Exposed<Endpoint>) -> usize {
    let _ = set.fenced();
    set.len() //~ E0382
}

// One invalidation stands for two.
fn proof_twice(set: &mut Exposed<Endpoint>, proof: RemoteInvalidated<'_, Endpoint>) {
    let _ = set.remote_invalidated(proof);
    let _ = set.remote_invalidated(proof); //~ E0382
}

// A proof is kept until the key has come round.
fn keep_the_proof(proof: RemoteInvalidated<'_, Endpoint>) {
    fn keep<T: 'static>(_: T) {}
    keep(proof); //~ E0521
}

// Bytes of a message outlive it: the device may write there again (rows 5, 7).
fn bytes_after_repost(msg: RxMsg<Endpoint>) -> usize {
    let bytes = msg.bytes();
    drop(msg); //~ E0505
    bytes.len()
}

fn bytes_of_a_server_message<S: Service>(msg: Message<S>) -> usize {
    let bytes = msg.bytes();
    drop(msg); //~ E0505
    bytes.len()
}

// A connection is used after its queue pair is gone (rows 36, 39).
fn use_after_shutdown(conn: Conn<Endpoint>) -> bool {
    let _: Quiesced = conn.shutdown();
    conn.has_room() //~ E0382
}

fn shut_down_twice(conn: Conn<Endpoint>) {
    let _ = conn.shutdown();
    let _ = conn.shutdown(); //~ E0382
}

// A server looks at a reply after it was posted (row 33).
fn look_at_posted<S: Service>(mut reply: Reply<'_, S>) {
    let _ = reply.post(1, None);
    let _ = reply.buf(); //~ E0382
}

fn keep_the_reply<S: Service>(mut reply: Reply<'_, S>) {
    let bytes = reply.buf();
    let _ = reply.post(1, None); //~ E0505
    bytes.fill(0);
}

// Pages are used while they are read into (row 27).
fn use_pages_that_are_read_into<S: Service>(conn: &ServerConn<S>, pages: PageVec) {
    let _ = conn.read(pages);
    drop(pages); //~ E0382
}
