//! The binary: argv, crypto provider, runtime, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = ado::cli::run_guard(std::env::args_os()) {
        return code;
    }
    if ado::cli::complete() {
        return ExitCode::SUCCESS;
    }
    let cli = match ado::cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if let Some(code) = cli.run_alone() {
        return code;
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        unreachable!("nothing else installs a provider");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start threads: {error}");
            return ExitCode::from(125);
        }
    };
    let code = runtime.block_on(cli.run());
    // A write to somebody who does not read may never return.
    runtime.shutdown_background();
    code
}
