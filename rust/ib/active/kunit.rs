// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of connections that are made.

mod conn;
mod expose;
mod trial;
