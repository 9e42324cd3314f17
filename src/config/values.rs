//! The types of settings: what may be written, and how it is shown.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ado_proto::ids::is_name;
use serde_json::Value as Json;

use super::yaml::{At, Node, Value};
use super::{Context, DEFAULT_PORT, Error};

/// A value that can be written in a file, a variable or a flag.
pub(super) trait Setting: Sized {
    /// What people must write, for errors.
    const EXPECTED: &'static str;
    /// Never shown.
    const SECRET: bool = false;

    /// Reads the text of a flag, a variable, or an expanded `${…}`.
    fn from_text(text: &str) -> Option<Self>;

    /// Reads a plain YAML value. Expanded text was given to [`Setting::from_text`] before.
    fn from_value(value: &Value) -> Option<Self> {
        value.as_text().and_then(Self::from_text)
    }

    /// Reads a YAML node. Overridden by types whose errors lie deeper than their own key.
    fn from_node(node: &Node, at: &At<'_>) -> Result<Self, Error> {
        let read = match &node.value {
            Value::Expanded(text) => Self::from_text(text),
            value => Self::from_value(value),
        };
        read.ok_or_else(|| at.wrong(node))
    }

    /// The value as shown.
    fn to_json(&self) -> Json;
}

impl Setting for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        }
    }

    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Bool(value) = value { Some(*value) } else { None }
    }

    fn to_json(&self) -> Json {
        (*self).into()
    }
}

/// Whether something is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Switch(pub(super) bool);

impl Setting for Switch {
    const EXPECTED: &'static str = "true, false, on or off";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "on" => Some(Self(true)),
            "off" => Some(Self(false)),
            text => bool::from_text(text).map(Self),
        }
    }

    fn from_value(value: &Value) -> Option<Self> {
        bool::from_value(value).map(Self).or_else(|| value.as_text().and_then(Self::from_text))
    }

    fn to_json(&self) -> Json {
        self.0.into()
    }
}

impl Setting for u32 {
    const EXPECTED: &'static str = "a whole number from 0 on";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_value(value: &Value) -> Option<Self> {
        value.as_integer()
    }

    fn to_json(&self) -> Json {
        (*self).into()
    }
}

/// A whole number from 1 on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Positive(pub(super) u32);

impl Setting for Positive {
    const EXPECTED: &'static str = "a whole number from 1 on";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number| *number > 0).map(Self)
    }

    fn from_value(value: &Value) -> Option<Self> {
        value.as_integer().filter(|number| *number > 0).map(Self)
    }

    fn to_json(&self) -> Json {
        self.0.into()
    }
}

impl Setting for String {
    const EXPECTED: &'static str = "text (in quotes, if it looks like a number)";

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.into())
    }

    fn to_json(&self) -> Json {
        self.as_str().into()
    }
}

/// What may name a worker, a pool, a context.
#[derive(Debug, Clone)]
pub(super) struct Name(pub(super) String);

impl Setting for Name {
    const EXPECTED: &'static str =
        "a name of 1 to 63 letters, digits, `.`, `_`, `@` or `-`, not beginning with `.` or `-`";

    fn from_text(text: &str) -> Option<Self> {
        is_name(text).then(|| Self(text.into()))
    }

    fn to_json(&self) -> Json {
        self.0.as_str().into()
    }
}

/// Text that is never shown: not by `Debug`, not by `ado config show`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Setting for Secret {
    const EXPECTED: &'static str = "text (in quotes, if it looks like a number)";
    const SECRET: bool = true;

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.into()))
    }

    fn to_json(&self) -> Json {
        "********".into()
    }
}

impl Setting for PathBuf {
    const EXPECTED: &'static str = "a path";

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.into())
    }

    fn to_json(&self) -> Json {
        self.to_string_lossy().into()
    }
}

/// A path of a URL.
#[derive(Debug, Clone)]
pub(super) struct UrlPath(pub(super) String);

impl Setting for UrlPath {
    const EXPECTED: &'static str = "a path that begins with `/`";

    fn from_text(text: &str) -> Option<Self> {
        text.starts_with('/').then(|| Self(text.into()))
    }

    fn to_json(&self) -> Json {
        self.0.as_str().into()
    }
}

/// A time above zero. A plain number is milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Millis(pub(super) Duration);

impl Setting for Millis {
    const EXPECTED: &'static str = "a time above 0: milliseconds, or a number with `ms`, `s`, `m` or `h`";

    fn from_text(text: &str) -> Option<Self> {
        duration(text, 1).filter(|time| !time.is_zero()).map(Self)
    }

    fn from_value(value: &Value) -> Option<Self> {
        Self::from_text(&value.as_integer_or_text()?)
    }

    fn to_json(&self) -> Json {
        show_duration(self.0).into()
    }
}

/// A time, maybe zero. A plain number is seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seconds(pub(super) Duration);

impl Setting for Seconds {
    const EXPECTED: &'static str = "a time: seconds, or a number with `ms`, `s`, `m` or `h`";

    fn from_text(text: &str) -> Option<Self> {
        duration(text, 1000).map(Self)
    }

    fn from_value(value: &Value) -> Option<Self> {
        Self::from_text(&value.as_integer_or_text()?)
    }

    fn to_json(&self) -> Json {
        show_duration(self.0).into()
    }
}

/// A whole number and a unit; without a unit, `default` milliseconds each.
fn duration(text: &str, default: u64) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[digits..] {
        "" => default,
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit).map(Duration::from_millis)
}

/// With the largest unit that divides it.
pub(super) fn show_duration(time: Duration) -> String {
    let millis = time.as_millis();
    let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
    match units.into_iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None => format!("{millis}ms"),
    }
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

const BYTE_UNITS: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("T", 1_000_000_000_000),
    ("Gi", 1 << 30),
    ("G", 1_000_000_000),
    ("Mi", 1 << 20),
    ("M", 1_000_000),
    ("Ki", 1 << 10),
    ("k", 1000),
];

impl Setting for ByteSize {
    const EXPECTED: &'static str = "bytes above 0, or a number with `Ki`, `Mi`, `Gi`, `Ti`, `k`, `M`, `G` or `T`";

    fn from_text(text: &str) -> Option<Self> {
        let (number, unit) =
            BYTE_UNITS.into_iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit))).unwrap_or((text, 1));
        number.parse::<u64>().ok()?.checked_mul(unit).filter(|bytes| *bytes > 0).map(Self)
    }

    fn from_value(value: &Value) -> Option<Self> {
        Self::from_text(&value.as_integer_or_text()?)
    }

    fn to_json(&self) -> Json {
        match BYTE_UNITS.into_iter().find(|(_, unit)| self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => format!("{}{name}", self.0 / unit).into(),
            None => self.0.into(),
        }
    }
}

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::from_text(text).ok_or_else(|| format!("expected {}", Self::EXPECTED))
    }
}

/// Thousandths of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MilliCpu(pub u32);

impl Setting for MilliCpu {
    const EXPECTED: &'static str = "processors above 0, such as `2`, `0.5` or `500m`";

    fn from_text(text: &str) -> Option<Self> {
        let millis = match text.strip_suffix('m') {
            Some(millis) => millis.parse().ok()?,
            None => (text.parse::<f64>().ok()? * 1000.0).round(),
        };
        (1.0..=f64::from(u32::MAX)).contains(&millis).then_some(Self(millis as u32))
    }

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Float(number) => Self::from_text(&number.to_string()),
            value => Self::from_text(&value.as_integer_or_text()?),
        }
    }

    fn to_json(&self) -> Json {
        if self.0.is_multiple_of(1000) { (self.0 / 1000).to_string().into() } else { format!("{}m", self.0).into() }
    }
}

impl std::str::FromStr for MilliCpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::from_text(text).ok_or_else(|| format!("expected {}", Self::EXPECTED))
    }
}

/// How the mesh is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The mesh's own transport.
    Quic,
    /// tRPC over HTTP and WebSocket.
    Trpc,
}

impl Setting for Protocol {
    const EXPECTED: &'static str = "`quic` or `trpc`";

    fn from_text(text: &str) -> Option<Self> {
        [Self::Quic, Self::Trpc].into_iter().find(|protocol| protocol.to_json() == text)
    }

    fn to_json(&self) -> Json {
        match self {
            Self::Quic => "quic".into(),
            Self::Trpc => "trpc".into(),
        }
    }
}

/// How a caller proves who it is before it has a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthKind {
    /// An API key or join string is exchanged for a certificate once.
    ApiKey,
    /// The certificate is there already.
    Mtls,
}

impl Setting for AuthKind {
    const EXPECTED: &'static str = "`api-key` or `mtls`: every caller proves who it is";

    fn from_text(text: &str) -> Option<Self> {
        [Self::ApiKey, Self::Mtls].into_iter().find(|kind| kind.to_json() == text)
    }

    fn to_json(&self) -> Json {
        match self {
            Self::ApiKey => "api-key".into(),
            Self::Mtls => "mtls".into(),
        }
    }
}

/// Where a controller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// `host:port`, an IPv6 address in brackets.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Setting for Endpoint {
    const EXPECTED: &'static str =
        "`host`, `host:port` or `https://host[:port]` without a path (the port is 4433 unless given)";

    fn from_text(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("https://").map_or(text, |rest| rest.strip_suffix('/').unwrap_or(rest));
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok().filter(|port| *port > 0)?),
            _ => (rest, DEFAULT_PORT),
        };
        let good = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                (1..=253).contains(&host.len())
                    && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
            }
        };
        good.then(|| Self { host: host.into(), port })
    }

    fn to_json(&self) -> Json {
        self.to_string().into()
    }
}

impl Setting for SocketAddr {
    const EXPECTED: &'static str = "an IP address and a port";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn to_json(&self) -> Json {
        self.to_string().into()
    }
}

/// A list; one element may stand alone. In flags and variables they are separated by commas.
impl<T: Setting + Clone> Setting for Vec<T> {
    const EXPECTED: &'static str = T::EXPECTED;

    fn from_text(text: &str) -> Option<Self> {
        text.split(',').map(|part| T::from_text(part.trim())).collect()
    }

    fn from_node(node: &Node, at: &At<'_>) -> Result<Self, Error> {
        match &node.value {
            Value::List(nodes) => {
                nodes.iter().enumerate().map(|(index, node)| T::from_node(node, &at.index(index))).collect()
            }
            Value::Expanded(text) => Self::from_text(text).ok_or_else(|| at.wrong(node)),
            _ => T::from_node(node, at).map(|only| vec![only]),
        }
    }

    fn to_json(&self) -> Json {
        self.iter().map(Setting::to_json).collect::<Vec<_>>().into()
    }
}

impl Setting for BTreeMap<String, String> {
    const EXPECTED: &'static str = "names with text values (`name=value,…` in flags and variables)";

    fn from_text(text: &str) -> Option<Self> {
        text.split(',')
            .map(|pair| pair.trim().split_once('=').filter(|(name, _)| is_name(name)))
            .map(|pair| pair.map(|(name, value)| (name.into(), value.into())))
            .collect()
    }

    fn from_node(node: &Node, at: &At<'_>) -> Result<Self, Error> {
        let Value::Map(entries) = &node.value else {
            return if let Value::Expanded(text) = &node.value { Self::from_text(text) } else { None }
                .ok_or_else(|| at.wrong(node));
        };
        let entry = |(name, node): &(String, Node)| {
            let text = match &node.value {
                Value::Bool(value) => Some(value.to_string()),
                Value::Expanded(text) => Some(text.clone()),
                value => value.as_integer_or_text(),
            };
            text.filter(|_| is_name(name)).map(|text| (name.clone(), text)).ok_or_else(|| at.key(name).wrong(node))
        };
        entries.iter().map(entry).collect()
    }

    fn to_json(&self) -> Json {
        serde_json::json!(self)
    }
}

impl Setting for BTreeMap<String, Context> {
    const EXPECTED: &'static str = "names, each with `controllers`";

    fn from_text(_: &str) -> Option<Self> {
        None
    }

    fn from_node(node: &Node, at: &At<'_>) -> Result<Self, Error> {
        let Value::Map(entries) = &node.value else { return Err(at.wrong(node)) };
        let context = |(name, node): &(String, Node)| {
            let at = at.key(name);
            let (Value::Map(fields), true) = (&node.value, is_name(name)) else { return Err(at.wrong(node)) };
            let mut controllers = Vec::new();
            for (field, node) in fields {
                match field.as_str() {
                    "controllers" => controllers = Setting::from_node(node, &at.key(field))?,
                    _ => return Err(at.unknown(field, node, ["controllers"])),
                }
            }
            if controllers.is_empty() {
                return Err(at.wrong(node));
            }
            Ok((name.clone(), Context { controllers }))
        };
        entries.iter().map(context).collect()
    }

    fn to_json(&self) -> Json {
        let shown = |(name, context): (&String, &Context)| {
            (name.clone(), serde_json::json!({ "controllers": context.controllers.to_json() }))
        };
        Json::Object(self.iter().map(shown).collect())
    }
}
