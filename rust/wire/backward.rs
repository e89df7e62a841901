// SPDX-License-Identifier: GPL-2.0

//! Telling calls from replies.
//!
//! On a connection that carries both directions (RFC 8167), a message is known to be a call or a
//! reply only by the second word of the RPC message in it. Backward messages are always plain: MSG,
//! no chunks (row W60).

use super::cursor::Cursor;
use super::{
    Proc,
    VERSION, //
};

/// The direction word of an RPC call.
const RPC_CALL: u32 = 0;

/// The XID in the header, the XID and the direction word of the RPC message, if `msg` is MSG
/// without chunks and long enough.
#[inline]
fn peek(msg: &[u8]) -> Option<(u32, u32, u32)> {
    let mut cursor = Cursor::new(msg);
    let [xid, version, _credits, proc, reads, writes, reply, rpc_xid, direction] =
        cursor.words().ok()?;
    let plain =
        version == VERSION && proc == Proc::Msg.as_u32() && reads == 0 && writes == 0 && reply == 0;
    plain.then_some((xid, rpc_xid, direction))
}

/// Whether a client received a call from its server (RFC 8167, 4 and 5.1; row W58).
///
/// The caller also has to check that it offers a callback service.
#[inline]
pub fn is_backward_call(msg: &[u8]) -> bool {
    matches!(peek(msg), Some((xid, rpc_xid, RPC_CALL)) if xid == rpc_xid)
}

/// Whether a server received a reply to one of its own calls (row W59).
///
/// The caller also has to check that it has a backward channel on this connection. The XIDs are not
/// compared here: whoever looks up the call does.
#[inline]
pub fn is_backward_reply(msg: &[u8]) -> bool {
    matches!(peek(msg), Some((_, _, direction)) if direction != RPC_CALL)
}
