//! Which file, and where ado lives: the only part that touches the file system.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Error, Flags};

/// Reads the file `--config` or `ADO_CONFIG` names, else `$XDG_CONFIG_HOME/ado/config.yaml` or
/// `~/.config/ado/config.yaml` if there is one.
///
/// # Errors
/// [`Error::Unreadable`]; a file that was not named may be missing.
pub fn read(flags: &Flags, env: &BTreeMap<String, String>) -> Result<Option<(PathBuf, String)>, Error> {
    let named = flags.config.clone().or_else(|| variable(env, "ADO_CONFIG").map(PathBuf::from));
    let must_exist = named.is_some();
    let standard = || base(env, "XDG_CONFIG_HOME", ".config").map(|base| base.join("ado/config.yaml"));
    let Some(path) = named.or_else(standard) else { return Ok(None) };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => Ok(None),
        Err(error) => Err(Error::Unreadable { path, cause: error.to_string() }),
    }
}

/// Where ado lives unless it is told.
pub(super) fn data_home(env: &BTreeMap<String, String>) -> Result<PathBuf, Error> {
    let base = base(env, "XDG_DATA_HOME", ".local/share");
    base.map(|base| base.join("ado")).ok_or(Error::Missing { key: "home", advice: "set ADO_HOME, or HOME" })
}

/// Puts the home directory for a leading `~`, which only shells do.
pub(super) fn expand_home(path: &Path, env: &BTreeMap<String, String>) -> Result<PathBuf, Error> {
    let Ok(rest) = path.strip_prefix("~") else { return Ok(path.into()) };
    let home = variable(env, "HOME").ok_or(Error::Missing { key: "HOME", advice: "a path begins with `~`" })?;
    Ok(Path::new(home).join(rest))
}

/// A base directory of the XDG specification; one that is not absolute is ignored, as it demands.
fn base(env: &BTreeMap<String, String>, name: &str, below_home: &str) -> Option<PathBuf> {
    let named = variable(env, name).map(PathBuf::from).filter(|path| path.is_absolute());
    named.or_else(|| Some(Path::new(variable(env, "HOME")?).join(below_home)))
}

fn variable<'e>(env: &'e BTreeMap<String, String>, name: &str) -> Option<&'e str> {
    env.get(name).map(String::as_str).filter(|value| !value.is_empty())
}
