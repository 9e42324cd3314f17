//! What decoding may make us hold: bounded by what really came, whatever lengths it announces.

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ado_proto::frame::{self, Limits};
use ado_proto::record;
use ado_proto::request::{self, ErrorReply, Submit};
use ado_proto::spec::{Input, TaskSpec};
use bytes::{Bytes, BytesMut};

use support::cases;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// Counts what each thread holds. Memory freed by another thread does not matter here.
struct Counting;

#[expect(unsafe_code, reason = "a global allocator is unsafe; this one passes everything on and counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.get().wrapping_add(layout.size());
        NOW.set(now);
        PEAK.set(PEAK.get().max(now));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.set(NOW.get().saturating_sub(layout.size()));
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes held at once while `work` ran, beyond those held before.
fn peak(work: impl FnOnce()) -> usize {
    let before = NOW.get();
    PEAK.set(before);
    work();
    PEAK.get() - before
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A frame with the given flag byte and body.
fn framed(flags: u8, body: &[u8]) -> BytesMut {
    let mut frame = BytesMut::from(varint(body.len() as u64 + 1).as_slice());
    frame.extend_from_slice(&[flags]);
    frame.extend_from_slice(body);
    frame
}

const KIB: usize = 1024;

#[test]
fn the_counter_counts() {
    assert!((100 * KIB..101 * KIB).contains(&peak(|| drop(vec![1u8; 100 * KIB]))));
    assert!(peak(|| drop(vec![0u64; 100 * KIB])) >= 800 * KIB, "zeroed memory too");
}

#[test]
fn an_announced_length_costs_nothing_by_itself() {
    for limits in [Limits::MESH, Limits::STRANGER] {
        let over = [limits.wire as u64 + 1, 1 << 31, u64::from(u32::MAX), 1 << 32, u64::MAX];
        for announced in over {
            let mut buffer = BytesMut::from(varint(announced).as_slice());
            let held = peak(|| assert!(frame::decode(&mut buffer, limits).is_err()));
            assert!(held < KIB, "{announced}: {held}");
        }
        // The longest that is accepted: room is made for a part of it only.
        let mut buffer = BytesMut::from(varint(limits.wire as u64).as_slice());
        let held = peak(|| assert_eq!(frame::decode(&mut buffer, limits), Ok(None)));
        assert!(held <= 65 * KIB && held <= limits.wire + KIB, "{held}");
    }
}

#[test]
fn a_bomb_does_not_go_off() {
    // 64 MiB of zeros, 256 KiB compressed.
    let bomb = lz4_flex::block::compress(&vec![0; 64 * KIB * KIB]);
    assert!(bomb.len() < Limits::MESH.wire);
    for limits in [Limits::MESH, Limits::STRANGER] {
        for announced in [64 * KIB * KIB, limits.body + 1, limits.body, 100, 0] {
            let body = [varint(announced as u64), bomb.clone()].concat();
            let mut buffer = framed(1, &body);
            let held = peak(|| assert!(frame::decode(&mut buffer, limits).is_err()));
            assert!(held <= limits.body + KIB, "announced {announced}: {held}");
            assert!(announced <= limits.body || held < KIB, "announced {announced}: {held}");
        }
    }
}

/// How many times its encoding a decoded value takes at most. An empty string is one byte encoded; in a vector it is 24,
/// and while that grows the old half is still there.
const EXPANSION: usize = 24 * 3;

/// What serde sets aside for a sequence at most before its elements came, and a little more.
const AHEAD: usize = KIB * KIB + 64 * KIB;

#[test]
fn lengths_inside_values_do_not_reserve_memory() {
    let lengths = [varint(u64::from(u32::MAX)), varint(u64::MAX), varint(1 << 31), varint(1 << 20)];
    for case in cases() {
        let encoded = (case.make)(&[7; 200]).0;
        for at in 0..=encoded.len() {
            for length in &lengths {
                // Put in, and put in place of a byte.
                for skip in [0, 1] {
                    let rest = &encoded[(at + skip).min(encoded.len())..];
                    let bytes = Bytes::from([&encoded[..at], length, rest].concat());
                    let held = peak(|| _ = (case.decodes)(&bytes));
                    let bound = 4 * KIB + EXPANSION * bytes.len();
                    assert!(held <= bound, "{}: {held} for {} bytes", case.name, bytes.len());
                }
            }
        }
    }
}

#[test]
fn records_announce_no_more_than_there_is() {
    for length in [varint(record::MAX_BODY as u64), varint(u64::from(u32::MAX))] {
        for kind in [1u8, 12, 100, 77] {
            let bytes = Bytes::from([vec![kind, 1, 0, 0, 0], length.clone(), vec![0; 100]].concat());
            let held = peak(|| assert!(record::decode_all(bytes).is_err()));
            assert!(held < 4 * KIB, "{held}");
        }
    }
}

#[test]
fn the_densest_values_expand_only_so_far() {
    // What costs least on the wire for what it costs here.
    let specs = 40_000;
    let empty = TaskSpec { pool: String::new(), ..TaskSpec::new("", Input::Text(String::new())) };
    let one = request::encode_request(&header(), &Submit { name: None, specs: vec![empty], copies: 1 });
    // Every field of it is one zero byte.
    let spec = 25;
    assert!(one.ends_with(&[[1].as_slice(), &vec![0; spec], &[1]].concat()));
    let bytes = [vec![0], varint(specs), vec![0; spec * specs as usize], vec![1]].concat();
    let held = peak(|| assert!(request::decode_body::<Submit>(&bytes).is_ok()));
    assert!(held <= AHEAD + EXPANSION * bytes.len(), "{held} for {} bytes of specs", bytes.len());

    let reply = ErrorReply { code: 1, message: String::new(), hints: vec![String::new(); 1_000_000] };
    let bytes = request::encode_response::<()>(&Err(reply));
    let held = peak(|| assert!(request::decode_response::<Submit>(&bytes).is_ok()));
    assert!(held <= AHEAD + EXPANSION * bytes.len(), "{held} for {} bytes of hints", bytes.len());

    // What a stranger may send stays small.
    let reply = ErrorReply { code: 1, message: String::new(), hints: vec![String::new(); Limits::STRANGER.body - 8] };
    let bytes = request::encode_response::<()>(&Err(reply));
    let held = peak(|| assert!(request::decode_response::<Submit>(&bytes).is_ok()));
    assert!(held <= EXPANSION * Limits::STRANGER.body, "{held}");
}

fn header() -> request::Header {
    request::Header { minor: 1, kind: 20, version: 1, id: None, namespace: None }
}
