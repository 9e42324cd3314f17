//! Private servers of what ado works with, for tests.

pub mod redis;
