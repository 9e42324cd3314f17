//! Hides a task's secrets in what its agent says.
//!
//! Owns: the forms in which a secret may come, where they are in a stream that is read in parts, what stands in their
//! place. Must never know: pipes, clocks. A run of hidden bytes is one [`MASK`], however many secrets lie in it.
//!
//! A stream that might go on as a secret is held back, by less than the longest form; whoever holds this decides for how
//! long. If the beginning of a secret had to be given out, the rest of it is hidden all the same.

use std::sync::Arc;

use ado_proto::record::Body;
use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::BytesMut;
use serde_json::Value;

/// What stands for hidden bytes.
const MASK: &[u8] = b"***";
/// Fewest bytes of a line of a secret that has several: shorter ones (`}`, `true`) are everywhere.
const LEAST_LINE: usize = 8;
/// Fewest characters of an encoded form.
const LEAST_FORM: usize = 5;
/// Longer forms are looked for in pieces of this length, which is that of a line of base64(1). So little is held back.
const PIECE: usize = 76;
/// A last piece that would be shorter than this overlaps the one before.
const LEAST_PIECE: usize = 16;

/// Finds some secrets. Made for an attempt that has any.
#[derive(Debug)]
pub(super) struct Redactor {
    automaton: AhoCorasick,
    /// Sorted, each once.
    patterns: Vec<Vec<u8>>,
    longest: usize,
}

/// One stream on its way through a [`Redactor`].
#[derive(Debug)]
pub(super) struct Redacting {
    redactor: Arc<Redactor>,
    /// As it came: the last of what was given out, and all that is held.
    window: Vec<u8>,
    /// How much of the window was given out.
    given: usize,
    /// Whether the last byte given out was a hidden one.
    hidden: bool,
}

impl Redactor {
    /// For these values; `None` when there is nothing to look for.
    pub(super) fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut patterns: Vec<_> = values.into_iter().flat_map(forms).flat_map(|form| pieces(&form)).collect();
        patterns.sort_unstable();
        patterns.dedup();
        let longest = patterns.iter().map(Vec::len).max()?;
        // All occurrences are wanted, those within others too.
        let automaton = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&patterns);
        Some(Self { automaton: automaton.expect("some hundred kilobytes of patterns"), patterns, longest })
    }

    /// Begins a stream.
    pub(super) fn stream(self: &Arc<Self>) -> Redacting {
        Redacting { redactor: self.clone(), window: Vec::new(), given: 0, hidden: false }
    }

    /// What an agent says beside its output.
    pub(super) fn body(&self, body: Body) -> Body {
        match body {
            Body::Note(mut note) => {
                note.text = self.text(&note.text);
                note.into()
            }
            Body::Progress(mut progress) => {
                progress.message = progress.message.map(|message| self.text(&message));
                progress.into()
            }
            Body::Asked(mut asked) => {
                asked.text = self.text(&asked.text);
                asked.detail = self.json(asked.detail);
                for choice in &mut asked.choices {
                    choice.label = self.text(&choice.label);
                }
                asked.into()
            }
            Body::Checkpointed(mut made) => {
                made.data = self.json(made.data);
                made.into()
            }
            other => other,
        }
    }

    fn text(&self, text: &str) -> String {
        let mut out = Vec::new();
        let mut at = 0;
        for (start, end) in self.hidden(text.as_bytes()) {
            out.extend_from_slice(&text.as_bytes()[at..start]);
            out.extend_from_slice(MASK);
            at = end;
        }
        out.extend_from_slice(&text.as_bytes()[at..]);
        // A piece of a form may end within a character.
        String::from_utf8_lossy(&out).into_owned()
    }

    /// JSON stays JSON: what is hidden in it is a part of a text, or a whole number.
    fn json(&self, text: String) -> String {
        let Ok(mut value) = serde_json::from_str::<Value>(&text) else { return self.text(&text) };
        if self.value(&mut value) { value.to_string() } else { text }
    }

    /// Whether anything was hidden.
    fn value(&self, value: &mut Value) -> bool {
        let hide = |text: &mut String| {
            let hidden = self.text(text);
            let differs = hidden != *text;
            *text = hidden;
            differs
        };
        match value {
            Value::String(text) => hide(text),
            Value::Array(values) => {
                let mut any = false;
                for value in values {
                    any |= self.value(value);
                }
                any
            }
            Value::Object(fields) => {
                let mut any = false;
                *fields = std::mem::take(fields)
                    .into_iter()
                    .map(|(mut name, mut value)| {
                        any |= hide(&mut name) | self.value(&mut value);
                        (name, value)
                    })
                    .collect();
                any
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {
                let mut text = value.to_string();
                let any = hide(&mut text);
                if any {
                    *value = Value::String(text);
                }
                any
            }
        }
    }

    /// Where something is to be hidden, in order, with gaps between.
    fn hidden(&self, window: &[u8]) -> Vec<(usize, usize)> {
        let found = self.automaton.find_overlapping_iter(window);
        let mut found: Vec<_> = found.map(|found| (found.start(), found.end())).collect();
        found.sort_unstable();
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (start, end) in found {
            match runs.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => runs.push((start, end)),
            }
        }
        runs
    }

    /// How many of the last bytes may be the beginning of a secret.
    fn begun(&self, window: &[u8]) -> usize {
        let tail = &window[window.len().saturating_sub(self.longest - 1)..];
        let begins = |rest: &&[u8]| {
            let next = self.patterns.partition_point(|pattern| pattern.as_slice() < *rest);
            let near = self.patterns[next..].iter().take(2);
            near.into_iter().any(|pattern| pattern.len() > rest.len() && pattern.starts_with(rest))
        };
        (0..tail.len()).map(|at| &tail[at..]).find(begins).map_or(0, <[u8]>::len)
    }
}

impl Redacting {
    /// Takes what was read, gives out what is surely no part of a secret that goes on.
    pub(super) fn take(&mut self, data: &[u8], out: &mut BytesMut) {
        self.window.extend_from_slice(data);
        let held = self.redactor.begun(&self.window).min(self.window.len() - self.given);
        self.give(self.window.len() - held, out);
    }

    /// Gives out what is held.
    pub(super) fn release(&mut self, out: &mut BytesMut) {
        self.give(self.window.len(), out);
    }

    /// How many bytes are held.
    pub(super) fn held(&self) -> usize {
        self.window.len() - self.given
    }

    fn give(&mut self, end: usize, out: &mut BytesMut) {
        let mut at = self.given;
        for (start, stop) in self.redactor.hidden(&self.window) {
            let (start, stop) = (start.max(at), stop.min(end));
            if start >= stop {
                continue;
            }
            self.show(at..start, out);
            if !self.hidden {
                out.extend_from_slice(MASK);
                self.hidden = true;
            }
            at = stop;
        }
        self.show(at..end, out);
        self.given = end;
        // What was given out may be the beginning of a secret all the same.
        let old = end.saturating_sub(self.redactor.longest - 1);
        self.window.drain(..old);
        self.given -= old;
    }

    fn show(&mut self, range: std::ops::Range<usize>, out: &mut BytesMut) {
        if !range.is_empty() {
            out.extend_from_slice(&self.window[range]);
            self.hidden = false;
        }
    }
}

/// All forms in which a secret is looked for.
fn forms(value: &str) -> Vec<Vec<u8>> {
    let value = value.trim_end_matches(['\r', '\n']);
    let lines: Vec<_> = value.split('\n').map(|line| line.trim_end_matches('\r')).collect();
    let mut plain: Vec<&str> =
        if lines.len() > 1 { lines.into_iter().filter(|line| line.len() >= LEAST_LINE).collect() } else { vec![value] };
    if plain.is_empty() {
        plain.push(value);
    }
    let mut forms: Vec<Vec<u8>> = Vec::new();
    for text in plain {
        let json = serde_json::to_string(text).expect("text is JSON");
        forms.extend([text.as_bytes().to_vec(), json.as_bytes()[1..json.len() - 1].to_vec()]);
    }
    forms.extend(base64_forms(value.as_bytes()));
    forms.extend([
        percent(value, "%20", hex_digit),
        percent(value, "+", hex_digit),
        percent(value, "%20", lower_digit),
    ]);
    forms.extend([hex_digit as fn(u8) -> char, lower_digit].map(|digit| {
        value.bytes().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect::<String>().into_bytes()
    }));
    forms.retain(|form| form.len() >= LEAST_FORM.min(value.len()));
    forms.sort_unstable();
    forms.dedup();
    forms
}

/// The characters of base64 that say nothing but a secret, wherever in the encoded bytes it begins.
fn base64_forms(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for before in 0..3 {
        let bytes = [&[0; 2][..before], value].concat();
        // Characters that also hold bits of what comes before or after.
        let (first, end) = ((before * 8).div_ceil(6), bytes.len() * 8 / 6);
        if end >= first + LEAST_FORM {
            forms.extend(
                [STANDARD_NO_PAD.encode(&bytes), URL_SAFE_NO_PAD.encode(&bytes)].map(|text| text[first..end].into()),
            );
        }
    }
    forms
}

/// RFC 3986: everything but unreserved characters is escaped.
fn percent(value: &str, space: &str, digit: fn(u8) -> char) -> Vec<u8> {
    let mut out = String::new();
    for byte in value.bytes() {
        match byte {
            b' ' => out.push_str(space),
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => out.push(byte.into()),
            byte => out.extend(['%', digit(byte >> 4), digit(byte & 15)]),
        }
    }
    out.into_bytes()
}

fn hex_digit(value: u8) -> char {
    b"0123456789ABCDEF"[usize::from(value)].into()
}

fn lower_digit(value: u8) -> char {
    hex_digit(value).to_ascii_lowercase()
}

/// Pieces that cover all of a form.
fn pieces(form: &[u8]) -> Vec<Vec<u8>> {
    let mut pieces: Vec<_> = form.chunks(PIECE).map(<[u8]>::to_vec).collect();
    if pieces.len() > 1
        && let Some(last) = pieces.last_mut()
        && last.len() < LEAST_PIECE
    {
        *last = form[form.len() - PIECE..].to_vec();
    }
    pieces
}

#[cfg(test)]
mod tests {
    use ado_proto::CheckpointId;
    use ado_proto::record::{Checkpointed, Note, Progress};
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn redactor(secrets: &[&str]) -> Arc<Redactor> {
        Arc::new(Redactor::new(secrets.iter().copied()).unwrap())
    }

    /// A stream read in these parts.
    fn shown(redactor: &Arc<Redactor>, parts: &[&[u8]]) -> Vec<u8> {
        let (mut stream, mut out) = (redactor.stream(), BytesMut::new());
        for part in parts {
            stream.take(part, &mut out);
            assert!(stream.held() < redactor.longest);
        }
        stream.release(&mut out);
        out.to_vec()
    }

    fn one(secret: &str, text: &str) -> String {
        String::from_utf8(shown(&redactor(&[secret]), &[text.as_bytes()])).unwrap()
    }

    #[test]
    fn every_form_of_a_secret_is_hidden() {
        let secret = "p@ss w\"rd/ü+1";
        let basic = STANDARD.encode(format!("ann:{secret}"));
        let url = "p%40ss%20w%22rd%2F%C3%BC%2B1";
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        let json = serde_json::to_string(secret).unwrap();
        let forms = [
            secret,
            &json[1..json.len() - 1],
            url,
            &url.to_lowercase(),
            &url.replace("%20", "+"),
            &hex,
            &hex.to_uppercase(),
        ];
        for form in forms {
            assert_eq!(one(secret, &format!("<{form}>")), "<***>", "{form}");
        }
        for before in ["", "a", "ab", "ann:"] {
            for encoded in
                [STANDARD.encode(format!("{before}{secret}")), URL_SAFE_NO_PAD.encode(format!("{before}{secret}.x"))]
            {
                let hidden = one(secret, &encoded);
                // What is left says less than a byte of the secret at either end.
                assert!(
                    hidden.len() <= 3 + before.len().div_ceil(3) * 4 + 6 && hidden.contains("***"),
                    "{encoded} {hidden}"
                );
            }
        }
        assert!(one(secret, &format!("Authorization: Basic {basic}")).starts_with("Authorization: Basic YW5u"));
    }

    #[test]
    fn of_several_lines_each_that_is_long_enough_is_hidden() {
        let key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEF\n}\n-----END KEY-----\n";
        assert_eq!(one(key, &format!("a\n{key}b")), "a\n***\n***\n}\n***\nb");
        assert_eq!(one(key, "| MIIEvQIBADANBgkqhkiG9w0BAQEF |"), "| *** |");
        let json = serde_json::to_string(key).unwrap();
        assert_eq!(one(key, &json), "\"***\\n***\\n}\\n***\\n\"");
        // As base64(1) wraps it.
        let long = "x1y2z3".repeat(100);
        let encoded = STANDARD.encode(&long);
        let wrapped: Vec<_> =
            encoded.as_bytes().chunks(76).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        assert!(
            one(&long, &wrapped.join("\n")).lines().all(|line| line == "***"),
            "{}",
            one(&long, &wrapped.join("\n"))
        );
        assert_eq!(one("a\nb\nc", "x a\nb\nc y"), "x *** y", "all of its lines are short");
    }

    #[test]
    fn runs_of_hidden_bytes_are_one_mask() {
        let both = redactor(&["abcdef", "defghi", "abcd"]);
        assert_eq!(shown(&both, &[b"<abcdefghi>"]), b"<***>");
        assert_eq!(shown(&both, &[b"<abcdef", b"", b"ghi>"]), b"<***>");
        assert_eq!(shown(&both, &[b"<abcdabcd-abcd>"]), b"<***-***>");
        let all = redactor(&["aaaa"]);
        assert_eq!(shown(&all, &[&[b'a'; 1000], b"b", &[b'a'; 3]]), b"***baaa");
        assert_eq!(shown(&all, &[&b"a"[..]; 1000]), b"***");
        let long = "0123456789".repeat(60);
        assert_eq!(one(&long, &format!("<{long}>")), "<***>", "pieces of one");
    }

    #[test]
    fn what_had_to_be_given_out_is_no_way_round() {
        let redactor = redactor(&["hunter2-hunter2"]);
        let (mut stream, mut out) = (redactor.stream(), BytesMut::new());
        for part in ["hunter2-", "hunt", "er2 hunter2-hunter2 hunter2"] {
            stream.take(part.as_bytes(), &mut out);
            stream.release(&mut out);
        }
        assert_eq!(&out[..], b"hunter2-hunt*** *** hunter2");
        // To its last byte.
        let (mut stream, mut out) = (redactor.stream(), BytesMut::new());
        for byte in "hunter2-hunter2".as_bytes() {
            stream.take(&[*byte], &mut out);
            stream.release(&mut out);
        }
        assert_eq!(&out[..], b"hunter2-hunter***");
    }

    #[test]
    fn what_is_said_beside_the_output_too() {
        let redactor = redactor(&["hunter2!", "12345678"]);
        let note = redactor.body(Note { text: "a hunter2! b".into() }.into());
        assert_eq!(note, Note { text: "a *** b".into() }.into());
        let progress = |message: &str| Body::from(Progress { percent: Some(1), message: Some(message.into()) });
        assert_eq!(redactor.body(progress("hunter2!")), progress("***"));
        let made =
            |data: &str| Body::from(Checkpointed { id: CheckpointId(Uuid::nil()), data: data.into(), snapshot: None });
        let data = r#"{"b":["x hunter2!",12345678,1],"a":{"hunter2!":null}}"#;
        assert_eq!(redactor.body(made(data)), made(r#"{"a":{"***":null},"b":["x ***","***",1]}"#));
        let same = r#"{ "b": 1e2, "a": "hunter" }"#;
        assert_eq!(redactor.body(made(same)), made(same), "not even a space");
        let escaped = r#""hunter\u0032!""#;
        assert_eq!(redactor.body(made(escaped)), made(r#""***""#));
    }

    /// What is to be hidden, found byte by byte.
    fn expected(secrets: &[String], text: &[u8]) -> Vec<u8> {
        let mut hidden = vec![false; text.len()];
        for form in secrets.iter().flat_map(|secret| forms(secret)) {
            for at in (0..=text.len().saturating_sub(form.len())).filter(|at| text[*at..].starts_with(&form)) {
                hidden[at..at + form.len()].fill(true);
            }
        }
        let mut out = Vec::new();
        for (at, byte) in text.iter().enumerate() {
            match hidden[at] {
                true if at == 0 || !hidden[at - 1] => out.extend_from_slice(MASK),
                true => {}
                false => out.push(*byte),
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_occurrence_survives_and_nothing_else_changes(
            secrets in prop::collection::vec("[ab]{4,9}|[a-c%\" ]{4,20}", 1..4),
            words in prop::collection::vec((0..8usize, any::<prop::sample::Index>(), "[ab %]{0,6}"), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut text = Vec::new();
            for (what, which, noise) in words {
                let secret = which.get(&secrets);
                match what {
                    0..3 => text.extend_from_slice(secret.as_bytes()),
                    3 => text.extend_from_slice(which.get::<Vec<u8>>(&forms(secret))),
                    4 => text.extend_from_slice(&secret.as_bytes()[..secret.len() / 2]),
                    5 => text.extend_from_slice(STANDARD.encode(secret).as_bytes()),
                    _ => {}
                }
                text.extend_from_slice(noise.as_bytes());
            }
            let redactor = Arc::new(Redactor::new(secrets.iter().map(String::as_str)).unwrap());
            let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(text.len() + 1)).chain([0, text.len()]).collect();
            at.sort_unstable();
            let parts: Vec<_> = at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let shown = shown(&redactor, &parts);
            prop_assert_eq!(&shown, &expected(&secrets, &text));
            for secret in &secrets {
                prop_assert!(!shown.windows(secret.len()).any(|window| window == secret.as_bytes()), "{} in {:?}", secret, shown);
            }
        }
    }
}
