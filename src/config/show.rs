//! `ado config show`: every key, its value, and where that comes from.

use serde_json::{Value as Json, json};

use super::{Config, Origin};

/// One key as it holds. Secrets are masked.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// The key's path.
    pub key: &'static str,
    /// Its value; `None`: not set.
    pub value: Option<Json>,
    /// Where the value comes from.
    pub origin: Origin,
}

impl Config {
    /// Every key with its value, in the order of [`super::KEYS`].
    pub fn shown(&self) -> &[Shown] {
        &self.shown
    }

    /// For people: a line a key.
    pub fn to_text(&self) -> String {
        let value = |shown: &Shown| match &shown.value {
            None => "-".into(),
            Some(Json::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        let rows: Vec<_> = self.shown.iter().map(|shown| (shown.key, value(shown), shown)).collect();
        let keys = rows.iter().map(|(key, ..)| key.len()).max().unwrap_or(0);
        let values = rows.iter().map(|(_, value, _)| value.chars().count()).max().unwrap_or(0).min(32);
        rows.iter().map(|(key, value, shown)| format!("{key:keys$}  {value:values$}  {}\n", shown.origin)).collect()
    }

    /// For programs: an array of `{key, value, origin, from}`.
    pub fn to_json(&self) -> Json {
        let origin = |origin: &Origin| match origin {
            Origin::Flag(_) => "flag",
            Origin::Env(_) => "env",
            Origin::File(_) => "file",
            Origin::Default => "default",
        };
        let from = |origin: &Origin| (*origin != Origin::Default).then(|| origin.to_string());
        self.shown
            .iter()
            .map(|shown| {
                json!({
                    "key": shown.key,
                    "value": shown.value,
                    "origin": origin(&shown.origin),
                    "from": from(&shown.origin),
                })
            })
            .collect()
    }
}
