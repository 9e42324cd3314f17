//! The binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        #[cfg(unix)]
        (Some(command), Some(guards)) if command == "guard" => ado::worker::guard::run(guards.as_ref()),
        _ => ExitCode::from(125),
    }
}
