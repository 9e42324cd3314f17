//! What ado says about itself, on stderr: a line an event, filtered by `--log-level` or `ADO_LOG`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Starts logging: `flag`, else `ADO_LOG`, else ado's own events from `default` on.
///
/// # Errors
/// Words about a filter that cannot be read.
pub fn init(default: &str, flag: Option<&str>) -> Result<(), String> {
    let given = flag.map(str::to_owned).or_else(|| std::env::var("ADO_LOG").ok().filter(|text| !text.is_empty()));
    let text = given.unwrap_or_else(|| format!("ado={default},warn"));
    let filter = filter(&text)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

/// A bare word is a level: the name of a target alone would silence all others without a word.
fn filter(text: &str) -> Result<EnvFilter, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("`{text}` is no log filter: {why}");
    if !text.contains(['=', ',', ':', '[']) && text.parse::<LevelFilter>().is_err() {
        return Err(wrong(&"write off, error, warn, info, debug or trace, or something like `ado::net=debug`"));
    }
    EnvFilter::try_new(text).map_err(|error| wrong(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        for good in ["debug", "OFF", "ado=info,warn", "ado::net=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for wrong in ["nonsense", "ado", "ado=loud"] {
            assert!(filter(wrong).unwrap_err().starts_with(&format!("`{wrong}` is no log filter: ")));
        }
    }
}
