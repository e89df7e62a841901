// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of connections that are accepted.

mod conn;
mod listen;
mod op;
mod trial;
