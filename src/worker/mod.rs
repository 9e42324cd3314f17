//! The worker.
pub mod containment;
pub mod guard;
pub mod outbox;
pub mod spool;
