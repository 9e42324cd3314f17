//! Frames: whole again however they are cut, limits at the byte, nothing malformed accepted.

use ado_proto::frame::{self, COMPRESS_FROM, FrameError, Limits};
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

fn encoded(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode(body, &mut out).expect("the body is within the limit");
    out
}

fn decode(bytes: &[u8], limits: Limits) -> Result<Option<Bytes>, FrameError> {
    frame::decode(&mut BytesMut::from(bytes), limits)
}

/// A body that cannot be compressed.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = |_| {
        // xorshift64 (Marsaglia, "Xorshift RNGs", 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(next).collect()
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let runs = prop::collection::vec((any::<u8>(), 0..3000usize), 0..6);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..2000),
        runs.prop_map(|runs| runs.into_iter().flat_map(|(byte, length)| vec![byte; length]).collect()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bodies_come_whole_however_they_are_cut(bodies in prop::collection::vec(body(), 0..5), cut in 1..700usize) {
        let stream: Vec<u8> = bodies.iter().flat_map(|body| encoded(body)).collect();
        let mut buffer = BytesMut::new();
        let mut read = Vec::new();
        for part in stream.chunks(cut) {
            buffer.extend_from_slice(part);
            while let Some(body) = frame::decode(&mut buffer, Limits::MESH).expect("frames are well-formed") {
                read.push(body);
            }
        }
        prop_assert_eq!(read, bodies);
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn no_bytes_panic_or_exceed_a_limit(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for limits in [Limits::MESH, Limits::STRANGER, Limits { wire: 40, body: 20 }] {
            let mut buffer = BytesMut::from(bytes.as_slice());
            while let Ok(Some(body)) = frame::decode(&mut buffer, limits) {
                prop_assert!(body.len() <= limits.body);
            }
        }
    }

    #[test]
    fn no_damage_panics(body in body(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = encoded(&body);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        for limits in [Limits::MESH, Limits::STRANGER] {
            if let Ok(Some(body)) = decode(&bytes, limits) {
                prop_assert!(body.len() <= limits.body);
            }
        }
    }
}

#[test]
fn long_bodies_are_compressed_when_that_makes_them_shorter() {
    assert_eq!(encoded(&vec![7; COMPRESS_FROM - 1]).len(), COMPRESS_FROM - 1 + 3);
    assert!(encoded(&vec![7; COMPRESS_FROM]).len() < 40);
    assert_eq!(encoded(&noise(5000)).len(), 5000 + 3);
}

#[test]
fn a_frame_of_two_pieces_is_the_same_frame() {
    for (head, bulk) in [(0, 0), (3, 0), (0, 9), (3, 9_000), (3, 40_000), (300, 100_000)] {
        for (bulk, is_noise) in [(noise(bulk), true), (vec![7; bulk], false)] {
            let (head, bulk) = (noise(head), Bytes::from(bulk));
            let pieces = frame::encode_pieces(&head, bulk.clone()).expect("the body is within the limit");
            let whole = [&head[..], &bulk[..]].concat();
            assert_eq!(decode(&pieces.concat(), Limits::MESH), Ok(Some(whole.clone().into())), "{}", whole.len());
            let (sent, alone) = (pieces.concat().len(), encoded(&whole).len());
            assert_eq!(sent, alone, "compressed or not alike: {} bytes", whole.len());
            let is_shared = !bulk.is_empty() && pieces[1].as_ptr() == bulk.as_ptr();
            assert_eq!(is_shared, is_noise && bulk.len() > 20_000, "not copied");
        }
    }
    let limit = Limits::MESH.body - 1;
    let over = frame::encode_pieces(&[0], vec![0; limit].into());
    assert_eq!(over, Err(FrameError::BodyTooLarge { size: limit + 1, limit }));
}

#[test]
fn a_frame_is_laid_out_as_released() {
    assert_eq!(encoded(b""), [1, 0]);
    assert_eq!(encoded(b"hi"), [3, 0, b'h', b'i']);
    let long = encoded(&noise(300));
    assert_eq!(long[..3], [0xad, 0x02, 0], "301 as a varint, no flag");
    // lz4: a length of 2000, one literal `a`, a match of 1,994 at distance 1, five literals.
    let packed = [&[16, 1, 0xd0, 0x0f, 0x1f, b'a', 1, 0][..], &[255; 7], &[190, 0x50], b"aaaaa"].concat();
    let packed = [&[(packed.len() - 1) as u8], &packed[1..]].concat();
    assert_eq!(decode(&packed, Limits::MESH), Ok(Some(vec![b'a'; 2000].into())));
}

#[test]
fn limits_hold_at_the_byte() {
    for limits in [Limits::MESH, Limits::STRANGER] {
        let most = limits.body.min(limits.wire - 1);
        assert_eq!(decode(&encoded(&noise(most)), limits), Ok(Some(noise(most).into())));
    }
    let limit = Limits::STRANGER.wire;
    let size = limit as u64 + 1;
    assert_eq!(decode(&encoded(&noise(limit)), Limits::STRANGER), Err(FrameError::TooLarge { size, limit }));
    // Short on the wire, too long after decompression.
    let size = limit as u64 + 1;
    assert_eq!(decode(&encoded(&vec![0; limit + 1]), Limits::STRANGER), Err(FrameError::TooLarge { size, limit }));
    let body = Limits { wire: 100, body: 5 };
    assert_eq!(decode(&encoded(&[0; 6]), body), Err(FrameError::TooLarge { size: 6, limit: 5 }));

    let limit = Limits::MESH.body - 1;
    let over = frame::encode(&vec![0; limit + 1], &mut Vec::new());
    assert_eq!(over, Err(FrameError::BodyTooLarge { size: limit + 1, limit }));
}

#[test]
fn malformed_frames_are_refused() {
    let malformed =
        |bytes: &[u8]| assert!(matches!(decode(bytes, Limits::MESH), Err(FrameError::Malformed(_))), "{bytes:?}");
    malformed(&[0]);
    malformed(&[2, 2, 0]);
    malformed(&[2, 0x80, 0]);
    malformed(&[0xff, 0xff, 0xff, 0xff, 0xff]);
    malformed(&[0xff, 0xff, 0xff, 0xff, 0x1f, 0]);
    malformed(&[1, 1]);
    malformed(&[2, 1, 0x80]);
    malformed(&[2, 1, 5]);
    malformed(&[4, 1, 5, 0x10, b'a']);
    for part in [&[][..], &[0x80], &[0xff, 0xff, 0xff, 0xff], &[3], &[3, 0], &[3, 0, 1]] {
        assert_eq!(decode(part, Limits::MESH), Ok(None), "{part:?} may go on");
    }
}
