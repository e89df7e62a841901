// SPDX-License-Identifier: GPL-2.0

//! Why a header could not be encoded or decoded.

/// Why a header could not be encoded or decoded.
///
/// A plain value without errno: the transports decide what each case means for the RPC and for the
/// connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The message ends before the header does.
    Truncated,
    /// The header carries this protocol version, which is not [`VERSION`](super::VERSION).
    BadVersion(u32),
    /// The header carries this procedure number, which is unknown or not allowed here.
    BadProc(u32),
    /// A list holds more chunks or segments than the caller allows.
    TooMany,
    /// Lengths add up to more than the caller allows, or than 32 bits hold.
    Overflow,
    /// A list or chunk is not one that the protocol allows in this place.
    BadChunk,
    /// The buffer is too small for the header being written.
    NoSpace,
}
