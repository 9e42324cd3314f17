//! The worker.
pub mod attempt;
pub mod containment;
pub mod course;
mod former;
pub mod guard;
mod keeper;
pub mod outbox;
mod pipes;
pub mod spool;
