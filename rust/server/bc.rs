// SPDX-License-Identifier: GPL-2.0

//! Calls to the client, and its replies (rows W59, W60, B17 and B19).

use super::conn::{
    Connection,
    BC_REQUESTS, //
};
use crate::{
    rt::err,
    sunrpc::{
        CallRqst,
        XdrView, //
    },
    wire::{
        self,
        Fixed,
        HDR_MIN, //
    },
};
use kernel::prelude::*;

/// Sends a call. After an error other than `EMSGSIZE` the connection is closed.
pub(super) fn send(conn: &Connection, xid: u32, call: &XdrView<'_>) -> Result {
    let mut message = conn.rdma().reply()?;
    let buf = message.buf().get_mut(..conn.max_send).ok_or(EINVAL)?;
    let header = wire::encode_plain(buf, xid, BC_REQUESTS).map_err(|_| err::emsgsize())?;
    let body = buf.get_mut(header..).ok_or_else(err::emsgsize)?;
    let (head, rest) = body
        .split_at_mut_checked(call.head_len())
        .ok_or_else(err::emsgsize)?;
    let (pages, rest) = rest
        .split_at_mut_checked(call.page_len())
        .ok_or_else(err::emsgsize)?;
    let tail = rest.get_mut(..call.tail_len()).ok_or_else(err::emsgsize)?;
    fill(head, call.head())?;
    fill(tail, call.tail())?;
    if !pages.is_empty() && !call.copy_pages(pages) {
        return Err(EIO);
    }
    let len = header
        .saturating_add(call.inline_len())
        .saturating_add(call.page_len());
    conn.post(message, len, None)
}

fn fill(to: &mut [u8], from: &[u8]) -> Result {
    if to.len() != from.len() {
        return Err(EINVAL);
    }
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    Ok(())
}

/// Takes in a reply.
pub(super) fn receive(rqst: &CallRqst<'_>, message: &[u8]) {
    if let (Ok((fixed, _)), Some(body)) = (Fixed::decode(message), message.get(HDR_MIN..)) {
        let credits = wire::clamp_grant(fixed.credits, BC_REQUESTS);
        rqst.bc_reply(fixed.xid, credits, body);
    }
}
