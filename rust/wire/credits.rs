// SPDX-License-Identifier: GPL-2.0

//! Credits: how many calls may be outstanding.
//!
//! RFC 8166, sections 3.3.1 to 3.3.3; RFC 8167 for the backward direction; rows W54 to W57.

/// What a client grants the server for backward calls (row W57).
pub const BACKWARD_CLIENT_CREDITS: u32 = 16;

/// What a server asks for in backward calls (row W57).
pub const BACKWARD_SERVER_CREDITS: u32 = 2;

/// Makes a usable number of a grant from the wire (row W55).
///
/// A peer that grants nothing, against RFC 8166, would stop the connection for good: 0 counts as 1.
/// A peer that grants more than was asked for cannot make the receiver of the grant allocate more
/// than `max`. A `max` of 0 counts as 1.
#[inline]
pub const fn clamp_grant(grant: u32, max: u32) -> u32 {
    if grant == 0 || max == 0 {
        1
    } else if grant > max {
        max
    } else {
        grant
    }
}
