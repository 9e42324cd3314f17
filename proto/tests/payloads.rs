//! Every payload: what is encoded is decoded, what is released stays, and no bytes do harm.

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ado_proto::record::{self, Body};
use ado_proto::session::{FollowItem, FromAttempt, FromWorker, Message, ToAttempt, ToWorker};
use ado_proto::{Epoch, Offset, Origin, Record, Seq, Timestamp};
use bytes::Bytes;
use proptest::prelude::*;

use support::{Case, cases, known, make};

fn entropy() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

/// Damage to an encoding: at a place (a share of its length), something is done.
fn damage() -> impl Strategy<Value = Vec<(f64, u8, u8)>> {
    prop::collection::vec((0.0..1.0f64, 0..5u8, any::<u8>()), 1..5)
}

fn damaged(bytes: &[u8], damage: &[(f64, u8, u8)]) -> Bytes {
    let mut bytes = bytes.to_vec();
    for (place, what, byte) in damage {
        let at = (place * bytes.len() as f64) as usize;
        match what {
            0 if at < bytes.len() => bytes[at] = *byte,
            1 if at < bytes.len() => bytes[at] ^= 1 << (byte % 8),
            2 => bytes.truncate(at),
            // A length of 64 bits.
            3 => drop(bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01])),
            _ => bytes.insert(at, *byte),
        }
    }
    bytes.into()
}

fn all_read(bytes: &Bytes) {
    for case in cases() {
        if let Ok((again, debug)) = (case.read)(bytes) {
            let (_, second) = (case.read)(&again).expect("what was encoded is decoded");
            assert_eq!(second, debug, "{}", case.name);
        }
    }
    let _ = FromWorker::from_frame(bytes);
    let _ = ToWorker::from_frame(bytes);
    let _ = ToAttempt::from_frame(bytes);
    let _ = FollowItem::from_frame(bytes);
    if let Ok(FromAttempt::Records(records)) = FromAttempt::from_frame(bytes) {
        let _ = records.decode();
    }
}

#[test]
fn the_table_of_cases_is_complete() {
    let have: Vec<_> = cases().into_iter().map(|case| (case.name, case.kind, case.version)).collect();
    let mut missing = known();
    missing.retain(|known| !have.contains(known));
    assert!(missing.is_empty(), "add to `support::cases`: {missing:?}");
    assert_eq!(have.len(), known().len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_is_decoded(entropy in entropy()) {
        for case in cases() {
            let (bytes, debug) = (case.make)(&entropy);
            prop_assert_eq!((case.read)(&bytes), Ok((bytes, debug)), "{}", case.name);
        }
    }

    #[test]
    fn a_part_of_an_encoding_is_refused(entropy in entropy(), share in 0.0..1.0f64) {
        for case in cases().iter().filter(|case| !case.open_ended) {
            let (bytes, _) = (case.make)(&entropy);
            if !bytes.is_empty() {
                let part = bytes.slice(..(share * bytes.len() as f64) as usize);
                prop_assert!((case.read)(&part).is_err(), "{}", case.name);
            }
            let longer = [bytes.as_ref(), &[0]].concat().into();
            prop_assert!((case.read)(&longer).is_err(), "{}", case.name);
        }
    }

    #[test]
    fn no_damage_panics(entropy in entropy(), damage in damage()) {
        for case in cases() {
            let bytes = damaged(&(case.make)(&entropy).0, &damage);
            if let Ok((again, debug)) = (case.read)(&bytes) {
                let (_, second) = (case.read)(&again).expect("what was encoded is decoded");
                prop_assert_eq!(second, debug, "{}", case.name);
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        all_read(&bytes.into());
    }

    #[test]
    fn messages_pass_what_they_do_not_know(kind in 5000u16.., version: u8, body in entropy()) {
        let message = ToWorker::Unknown { kind, version, bytes: body.into() };
        let frame = Bytes::from(message.to_frame());
        prop_assert_eq!(ToWorker::from_frame(&frame), Ok(message));
    }

    #[test]
    fn records_lie_end_to_end(parts in prop::collection::vec((entropy(), any::<u16>()), 0..8)) {
        let records: Vec<_> = parts.iter().enumerate().map(|(at, (entropy, kind))| a_record(at, entropy, *kind)).collect();
        let bytes = record::encode_all(&records);
        let read = record::decode_all(bytes.clone()).expect("records are read");
        prop_assert_eq!(&read, &records);
        for record in &read {
            if let Body::Output(output) = &record.body && !output.data.is_empty() {
                prop_assert!(bytes.as_ptr_range().contains(&output.data.as_ptr()), "output is not copied");
            }
        }
    }

    #[test]
    fn no_damage_to_records_panics(parts in prop::collection::vec((entropy(), any::<u16>()), 1..8), damage in damage()) {
        let records: Vec<_> = parts.iter().enumerate().map(|(at, (entropy, kind))| a_record(at, entropy, *kind)).collect();
        let bytes = damaged(&record::encode_all(&records), &damage);
        // The walk ends with the first error, and ends at all.
        let read: Vec<_> = record::Reader::new(bytes.clone()).collect();
        prop_assert!(read.len() <= bytes.len());
        prop_assert!(read.iter().rev().skip(1).all(Result::is_ok));
    }
}

fn a_record(at: usize, entropy: &[u8], kind: u16) -> Record {
    let body = match kind % 4 {
        0 => make::<record::Submitted>(entropy).into(),
        1 => make::<record::Ended>(entropy).into(),
        2 => Body::Unknown { kind: kind | 0x4000, version: 3, bytes: entropy.to_vec().into() },
        _ => record::Output { stream: record::Stream::Stderr, position: kind.into(), data: entropy.to_vec().into() }
            .into(),
    };
    let origin = match kind % 3 {
        0 => Origin::Controller,
        _ => Origin::Worker { epoch: Epoch(kind.into()), seq: Seq(u64::MAX) },
    };
    Record { offset: Offset(at as u64), origin, time: Timestamp(make(entropy)), body }
}

#[test]
fn a_record_is_laid_out_as_released() {
    let output = record::Output { stream: record::Stream::Stderr, position: 300, data: Bytes::from_static(b"hi") };
    let origin = Origin::Worker { epoch: Epoch(2), seq: Seq(5) };
    let record = Record { offset: Offset(7), origin, time: Timestamp(-1), body: output.into() };
    // kind 100, version 1, offset 7, origin worker 2/5, time -1 (zigzag), length 5 | stderr, 300, the data.
    let expected = [100, 1, 7, 1, 2, 5, 1, 5, 1, 0xac, 0x02, b'h', b'i'];
    assert_eq!(record::encode_all([&record]).as_ref(), expected);
    let note = Record { offset: Offset(0), origin: Origin::Controller, time: Timestamp(1), body: note("x") };
    assert_eq!(record::encode_all([&note]).as_ref(), [12, 1, 0, 0, 2, 2, 1, b'x']);
}

fn note(text: &str) -> Body {
    record::Note { text: text.into() }.into()
}

#[test]
fn a_body_over_the_limit_is_refused() {
    let record = |len: usize| {
        let body = Body::Unknown { kind: 500, version: 1, bytes: vec![0; len].into() };
        Record { offset: Offset(0), origin: Origin::Controller, time: Timestamp(0), body }
    };
    let mut bytes = Vec::new();
    record(record::MAX_BODY).encode(&mut bytes);
    assert!(record::decode_all(bytes.clone().into()).is_ok());
    // Length 256 KiB as a varint, made one more.
    let length = bytes.iter().position(|byte| *byte == 0x80).expect("the length's first byte");
    bytes[length] = 0x81;
    bytes.push(0);
    assert!(record::decode_all(bytes.into()).is_err());
}

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/payloads.txt");

/// The released payloads: name and version, and pairs of an encoding and what it means.
type Golden = BTreeMap<(String, u16, u8), Vec<(String, String)>>;

fn golden() -> Golden {
    let mut golden = Golden::new();
    let text = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    let mut of = None;
    let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    while let Some(line) = lines.next() {
        if let Some(hex) = line.strip_prefix("  ") {
            let meaning = lines.next().expect("an encoding is followed by its meaning").trim().to_owned();
            golden.entry(of.clone().expect("a name comes first")).or_default().push((hex.to_owned(), meaning));
        } else {
            let parts: Vec<_> = line.split([' ', '/']).collect();
            let [name, kind, version] = parts[..] else { panic!("`{line}` is not a name, kind and version") };
            of = Some((name.into(), kind.parse().expect("a kind"), version.parse().expect("a version")));
        }
    }
    golden
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to memory");
        hex
    })
}

fn unhex(hex: &str) -> Bytes {
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("two digits");
    (0..hex.len()).step_by(2).map(digits).collect()
}

/// Values with every variant there is (the n-th everywhere), and some of all sorts.
fn samples(case: &Case) -> Vec<(String, String)> {
    let mut state = 1u32;
    let mut random = |_| {
        // Knuth's generator, "The Art of Computer Programming" 3.3.4 line 16.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let same = (0..7u8).map(|byte| vec![byte; 64]);
    let mixed = (1..5usize).map(|length| (0..length * 16).map(&mut random).collect());
    let mut samples: Vec<_> = same
        .chain(mixed)
        .map(|entropy| {
            let (bytes, debug) = (case.make)(&entropy);
            (hex(&bytes), debug)
        })
        .collect();
    samples.sort();
    samples.dedup();
    samples
}

/// `ADO_BLESS=1` adds payloads that are not there yet. What is there is released: it is never written again.
#[test]
fn released_payloads_stay_readable() {
    let mut golden = golden();
    let cases = cases();
    if std::env::var_os("ADO_BLESS").is_some() {
        for case in &cases {
            let of = (case.name.clone(), case.kind, case.version);
            golden.entry(of).or_insert_with(|| samples(case));
        }
        let mut text = String::from(
            "# Released payloads: name kind/version, then encodings in hexadecimal, each with its meaning.\n",
        );
        for ((name, kind, version), samples) in &golden {
            writeln!(text, "\n{name} {kind}/{version}").expect("writing to memory");
            for (hex, meaning) in samples {
                writeln!(text, "  {hex}\n    {meaning}").expect("writing to memory");
            }
        }
        std::fs::write(GOLDEN, text).expect("the golden file is written");
    }
    for known in known() {
        assert!(golden.contains_key(&known), "{known:?} has no golden payload: run this test once with ADO_BLESS=1");
    }
    for ((name, kind, version), samples) in &golden {
        let case = cases
            .iter()
            .find(|case| (&case.name, case.kind, case.version) == (name, *kind, *version))
            .unwrap_or_else(|| panic!("{name} {kind}/{version} was released and must stay decodable"));
        for (encoded, meaning) in samples {
            let bytes = unhex(encoded);
            let (again, debug) = (case.read)(&bytes).unwrap_or_else(|error| panic!("{name} {encoded}: {error}"));
            assert_eq!((&hex(&again), &debug), (encoded, meaning), "{name} {kind}/{version}");
        }
    }
}
