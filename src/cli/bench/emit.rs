//! `ado bench emit`: what runs as the task that is measured.

use std::io;

use super::lines;
use crate::cli::error::{ADO_ERROR, Error, Kind};

/// Write lines that say when they were written
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Lines a second
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Write this many
    #[arg(long, default_value_t = 1000)]
    lines: u64,
    /// Bytes of a line, with its newline
    #[arg(long, default_value_t = 100)]
    size: usize,
}

pub(crate) fn run(args: &Args) -> Result<u8, Error> {
    // Not locked and not buffered by lines: one write a line, as an agent that flushes does.
    let stream = std::env::var("ADO_GROUP_INDEX").ok().and_then(|index| index.parse().ok()).unwrap_or(0);
    let mut stdout = io::stdout().lock();
    match lines::emit(stream, f64::from(args.rate), args.lines, args.size, &mut stdout) {
        Ok(()) => Ok(0),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ADO_ERROR),
        Err(error) => Err(Error::new(Kind::Local, "cannot write lines").because(error)),
    }
}
