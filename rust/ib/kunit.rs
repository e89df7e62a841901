// SPDX-License-Identifier: GPL-2.0

//! What the KUnit tests of both kinds of connection share: a device that does what the test says. The
//! tests themselves are in `active/kunit` and `passive/kunit`, each with a connection over it (`trial.rs`).

pub(super) mod fake;

pub(crate) use self::fake::{
    Asked,
    Fake, //
};

use crate::bindings;
use kernel::{
    prelude::*,
    sync::{
        atomic::Atomic,
        Arc, //
    },
};

pub(super) const OK: u32 = bindings::ib_wc_status_IB_WC_SUCCESS;
pub(super) const FAILED: u32 = bindings::ib_wc_status_IB_WC_REM_ACCESS_ERR;

pub(super) fn counter() -> Result<Arc<Atomic<u32>>> {
    Ok(Arc::new(Atomic::new(0), GFP_KERNEL)?)
}

pub(super) fn count(asked: &[Asked], wanted: impl Fn(&Asked) -> bool) -> usize {
    asked.iter().filter(|asked| wanted(asked)).count()
}

/// What is asked for at the end, each thing once.
pub(super) fn order(asked: &[Asked]) -> Result<KVec<Asked>> {
    let mut order = KVec::new();
    for &asked in asked {
        if order.last() != Some(&asked) {
            order.push(asked, GFP_KERNEL)?;
        }
    }
    Ok(order)
}
