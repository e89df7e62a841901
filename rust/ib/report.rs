// SPDX-License-Identifier: GPL-2.0

//! What uses which device, for administrators.

use super::device;
use crate::rt::debugfs::{
    File,
    Show, //
};
use kernel::{
    fmt,
    prelude::*, //
};

/// The file `connections` of debugfs, as long as this exists. It begins after the registration with
/// the RDMA core, and ends before that.
pub(crate) struct Report {
    _file: File<Connections>,
}

impl Report {
    /// Makes the file, in a directory of this name. May sleep.
    pub(crate) fn new(dir: &CStr) -> Self {
        Self {
            _file: File::new(dir, c"connections"),
        }
    }
}

struct Connections;

impl Show for Connections {
    fn show(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        device::show(f)
    }
}
