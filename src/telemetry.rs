//! What ado says about itself, on stderr: a line an event, filtered by `--log-level` or `ADO_LOG`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging: `flag`, else `ADO_LOG`, else ado's own events from `default` on.
///
/// # Errors
/// Words about a filter that cannot be read.
pub fn init(default: &str, flag: Option<&str>) -> Result<(), String> {
    let given = flag.map(str::to_owned).or_else(|| std::env::var("ADO_LOG").ok().filter(|text| !text.is_empty()));
    let text = given.unwrap_or_else(|| format!("ado={default},warn"));
    let filter = EnvFilter::try_new(&text).map_err(|error| format!("`{text}` is no log filter: {error}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}
