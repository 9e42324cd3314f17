//! What ado says about itself, on stderr: a line an event, filtered by `--log-level` or `ADO_LOG`; with
//! `ADO_LOG_FORMAT=json` a line of JSON.

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
    let format = format(std::env::var(FORMAT).ok().as_deref())?;
    let log = tracing_subscriber::fmt().with_env_filter(filter(&text)?).with_writer(std::io::stderr);
    match format {
        Format::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        Format::Json => log.json().flatten_event(true).with_current_span(false).init(),
    }
    Ok(())
}

/// The name of the variable that says how a line looks.
const FORMAT: &str = "ADO_LOG_FORMAT";

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// For people.
    Text,
    /// For programs: an object with `timestamp`, `level`, `target`, `message`, what else there is to say, and `spans`,
    /// which tell the worker, the task and the epoch it is about.
    Json,
}

fn format(given: Option<&str>) -> Result<Format, String> {
    match given {
        None | Some("" | "text") => Ok(Format::Text),
        Some("json") => Ok(Format::Json),
        Some(other) => Err(format!("{FORMAT}: `{other}` is no format of a log: write text or json")),
    }
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
    fn formats() {
        assert_eq!([None, Some(""), Some("text"), Some("json")].map(format).map(Result::unwrap), {
            [Format::Text, Format::Text, Format::Text, Format::Json]
        });
        assert!(format(Some("xml")).unwrap_err().contains("`xml` is no format of a log"));
    }

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
