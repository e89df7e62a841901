// SPDX-License-Identifier: GPL-2.0

//! Why connections end.

use crate::{
    bindings,
    rt::cstr, //
};
use kernel::{
    fmt,
    prelude::*, //
};

/// Why a connection cannot go on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The device is being removed.
    DeviceRemoved,
    /// The peer, or the connection manager, ended it.
    Disconnected,
    /// The local address moved to another device.
    AddressChange,
    /// A work request failed with this status.
    CompletionError(u32),
    /// The device has told twice that a Receive is complete.
    CompletedTwice,
    /// A work request could not be posted.
    PostFailed,
    /// A region could not be invalidated.
    InvalidateFailed,
    /// The device reports an error of the queue pair.
    QueueError,
    /// The peer does not react any more.
    Silent,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::DeviceRemoved => "the device is being removed",
            Self::Disconnected => "the peer has ended it, or the path to it",
            Self::AddressChange => "our address is at another device now",
            Self::CompletionError(status) => {
                // SAFETY: The function returns a constant string for any number.
                let text = unsafe { cstr::from_c(bindings::ib_wc_status_msg(status)) };
                return f.write_fmt(fmt!("a work request failed: {text} ({status})"));
            }
            Self::CompletedTwice => "the device has told twice of a message",
            Self::PostFailed => "a work request could not be posted",
            Self::InvalidateFailed => "memory could not be invalidated",
            Self::QueueError => "the device reports an error of the queue pair",
            Self::Silent => "the peer does not react",
        })
    }
}
