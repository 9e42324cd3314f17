//! What runs at the far end: this very program, asked to write.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::lines::{self, monotonic_ns};

/// Before the stamp of a program that only says when it began.
pub(crate) const STAMP: &str = "@stamp:";
/// Bytes of a line in a flood of lines.
pub(crate) const LINE: usize = 80;

/// Runs what `args` ask for, if they ask for anything.
pub(crate) fn run(args: &[String]) -> Option<ExitCode> {
    let begun = monotonic_ns();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut out = io::stdout().lock();
    let done = match words[..] {
        ["stamp"] => writeln!(out, "{STAMP}{begun}").and_then(|()| out.flush()),
        ["emit", at, rate, count, size] => {
            sleep_until(number(at));
            let stream = std::env::var("ADO_GROUP_INDEX").ok().and_then(|index| index.parse().ok()).unwrap_or(0);
            lines::emit(stream, number(rate) as f64, number(count), number(size) as usize, &mut out)
        }
        ["flood", "lines", count] => flood_lines(number(count), &mut out),
        ["flood", what, bytes] => flood(what, number(bytes), &mut out),
        _ => return None,
    };
    // Whoever reads has seen enough.
    Some(if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn number(text: &str) -> u64 {
    text.parse().expect("the bench gives numbers")
}

#[expect(clippy::disallowed_methods, reason = "all writers begin at an agreed instant")]
pub(crate) fn sleep_until(at: u64) {
    std::thread::sleep(std::time::Duration::from_nanos(at.saturating_sub(monotonic_ns())));
}

/// Bytes as fast as they are taken: `zeros`, or `random` ones that no compressor makes shorter.
fn flood(what: &str, bytes: u64, out: &mut impl Write) -> io::Result<()> {
    let mut block = vec![0u8; 1 << 20];
    if what == "random" {
        let mut seed = 1u64;
        for byte in &mut block {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (seed >> 33) as u8;
        }
    }
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        out.write_all(&block[..part])?;
        left -= part as u64;
    }
    out.flush()
}

/// Lines as fast as they are taken, each in a write of its own.
fn flood_lines(count: u64, out: &mut impl Write) -> io::Result<()> {
    for line in 0..count {
        let text = format!("{line:>10} {:.<68}\n", "the line of a program that flushes every line it writes");
        debug_assert_eq!(text.len(), LINE);
        out.write_all(text.as_bytes())?;
        out.flush()?;
    }
    Ok(())
}
