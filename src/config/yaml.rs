//! The file: YAML into a tree with lines, `${NAME}` from the environment, and the walk over the table of keys.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::keys::{KEYS, Key, Raw};
use super::{Error, Origin, error::Place};

/// A value of the file and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) line: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    /// Text that had a `${NAME}`: read as in a variable, whatever its key's type.
    Expanded(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Value {
    pub(super) fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    pub(super) fn as_integer<T: TryFrom<i128>>(&self) -> Option<T> {
        if let Self::Integer(number) = self { T::try_from(*number).ok() } else { None }
    }

    pub(super) fn as_integer_or_text(&self) -> Option<String> {
        match self {
            Self::Integer(number) => Some(number.to_string()),
            Self::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Null => "empty".into(),
            Self::Bool(value) => value.to_string(),
            Self::Integer(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Text(text) | Self::Expanded(text) => format!("\"{text}\""),
            Self::List(_) => "a list".into(),
            Self::Map(_) => "a mapping".into(),
        }
    }
}

/// Where in the file a value is read: for errors.
pub(super) struct At<'a> {
    file: &'a Path,
    path: String,
    key: &'a Key,
}

impl At<'_> {
    /// The full path of the value.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The value is not what its key needs.
    pub(super) fn wrong(&self, node: &Node) -> Error {
        Error::Wrong {
            place: Box::new(place(self.file, node.line)),
            key: self.path.clone(),
            value: if self.key.secret { "something else".into() } else { node.value.describe() },
            expected: self.key.expected,
            example: self.key.example,
        }
    }

    /// There is no such key below this one.
    pub(super) fn unknown<'k>(&self, name: &str, node: &Node, known: impl IntoIterator<Item = &'k str>) -> Error {
        unknown(place(self.file, node.line), &self.path, name, known)
    }

    /// A key below this one.
    pub(super) fn key(&self, name: &str) -> Self {
        Self { path: format!("{}.{name}", self.path), ..*self }
    }

    /// An element of this list.
    pub(super) fn index(&self, index: usize) -> Self {
        Self { path: format!("{}[{index}]", self.path), ..*self }
    }
}

fn place(file: &Path, line: u64) -> Place {
    Place { origin: Origin::File(file.into()), line: (line > 0).then_some(line) }
}

/// The error for a key nobody reads, with the known key that is most like it.
pub(super) fn unknown<'k>(place: Place, section: &str, name: &str, known: impl IntoIterator<Item = &'k str>) -> Error {
    let under = |name: &str| if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
    let likeness = |known: &str| strsim::jaro_winkler(&known.to_lowercase(), &name.to_lowercase());
    let meant = known
        .into_iter()
        .map(|known| (likeness(known), known))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    Error::Unknown { place, key: under(name), meant: meant.map(|(_, known)| under(known)) }
}

/// Reads the file's settings.
pub(super) fn read(file: &Path, text: &str, env: &BTreeMap<String, String>) -> Result<Raw, Error> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    let tree: Option<Tree> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let problem = match &error {
            serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => format!("`{key}` is given twice"),
            other => other.to_string(),
        };
        Error::Syntax { place: place(file, line), problem }
    })?;
    let mut raw = Raw::default();
    match tree.map(|tree| tree.0) {
        None | Some(Value::Null) => {}
        Some(Value::Map(entries)) => walk(&mut raw, file, "", entries, env)?,
        Some(other) => {
            let problem = format!("the file holds {}, but must hold keys such as `distributed:`", other.describe());
            return Err(Error::Syntax { place: place(file, 1), problem });
        }
    }
    Ok(raw)
}

fn walk(
    raw: &mut Raw,
    file: &Path,
    section: &str,
    entries: Vec<(String, Node)>,
    env: &BTreeMap<String, String>,
) -> Result<(), Error> {
    for (name, mut node) in entries {
        let path = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
        if let Some(key) = KEYS.iter().find(|key| key.path == path) {
            expand(file, &path, &mut node, env)?;
            // `key:` with nothing after it is as good as not written.
            if !matches!(node.value, Value::Null) {
                raw.set_node(&node, &At { file, path, key }, &Origin::File(file.into()))?;
            }
        } else if is_section(&path) {
            match node.value {
                Value::Null => {}
                Value::Map(entries) => walk(raw, file, &path, entries, env)?,
                other => {
                    return Err(Error::Wrong {
                        place: Box::new(place(file, node.line)),
                        key: path,
                        value: other.describe(),
                        expected: "a section: keys on the following lines, indented",
                        example: "distributed:\n  enabled: true",
                    });
                }
            }
        } else {
            return Err(unknown(place(file, node.line), section, &name, below(section)));
        }
    }
    Ok(())
}

/// What is left of a key's path below a section.
fn tail<'k>(path: &'k str, section: &str) -> Option<&'k str> {
    if section.is_empty() { Some(path) } else { path.strip_prefix(section)?.strip_prefix('.') }
}

fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| tail(key.path, path).is_some())
}

/// The names one level below a section.
fn below(section: &str) -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(move |key| tail(key.path, section)).filter_map(|tail| tail.split('.').next())
}

fn expand(file: &Path, path: &str, node: &mut Node, env: &BTreeMap<String, String>) -> Result<(), Error> {
    match &mut node.value {
        Value::Text(text) if text.contains("${") => {
            let expanded = interpolate(text, env).map_err(|wrong| {
                let (place, key) = (place(file, node.line), path.to_owned());
                match wrong {
                    Some(variable) => Error::MissingVariable { place, key, variable },
                    None => Error::BadVariable { place, key },
                }
            })?;
            node.value = Value::Expanded(expanded);
        }
        Value::List(nodes) => {
            for (index, node) in nodes.iter_mut().enumerate() {
                expand(file, &format!("{path}[{index}]"), node, env)?;
            }
        }
        Value::Map(entries) => {
            for (name, node) in entries {
                expand(file, &format!("{path}.{name}"), node, env)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Puts variables into text: `${NAME}`, `${NAME:-default}` (also when it is empty), `$${` for a plain `${`.
/// Fails with the name of a variable that is not set, or with nothing when the syntax is wrong.
fn interpolate(text: &str, env: &BTreeMap<String, String>) -> Result<String, Option<String>> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let before = &rest[..start];
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        out.push_str(before);
        let end = start + rest[start..].find('}').ok_or(None)?;
        let (name, default) = match rest[start + 2..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&rest[start + 2..end], None),
        };
        let named = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !named || name.as_bytes()[0].is_ascii_digit() {
            return Err(None);
        }
        match (env.get(name), default) {
            (Some(value), None) => out.push_str(value),
            (Some(value), Some(_)) if !value.is_empty() => out.push_str(value),
            (_, Some(default)) => out.push_str(default),
            (None, None) => return Err(Some(name.into())),
        }
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// A value without its place: what serde builds.
struct Tree(Value);

impl From<Spanned<Tree>> for Node {
    fn from(spanned: Spanned<Tree>) -> Self {
        Self { line: spanned.referenced.line(), value: spanned.value.0 }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor).map(Self)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = seq.next_element::<Spanned<Tree>>()? {
            nodes.push(node.into());
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<Spanned<String>>()? {
            let mut node = Node::from(map.next_value::<Spanned<Tree>>()?);
            // A mapping begins below its key, but its key is what people look for.
            node.line = name.referenced.line();
            entries.push((name.value, node));
        }
        Ok(Value::Map(entries))
    }
}
