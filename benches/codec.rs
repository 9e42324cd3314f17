//! What the wire costs: records and frames, in and out. `cargo bench --bench codec`.

use std::hint::black_box;

use ado_proto::frame::{self, Limits};
use ado_proto::record::{Output, Record, Stream, decode_all, encode_all};
use ado_proto::{Offset, Origin, Timestamp};
use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn record(offset: u64, data: Bytes) -> Record {
    let body = Output { stream: Stream::Stdout, position: 0, data }.into();
    Record { offset: Offset(offset), origin: Origin::Controller, time: Timestamp(0), body }
}

/// Lines of a build log, about.
fn text(len: usize) -> Bytes {
    let lines = (0..).flat_map(|line| format!("   Compiling crate-{line} v0.{}.1\n", line % 17).into_bytes());
    lines.take(len).collect::<Vec<_>>().into()
}

fn records(c: &mut Criterion) {
    for (name, len, count) in [("lines of 80 bytes", 80, 3000), ("reads of 32 KiB", 32 * 1024, 8)] {
        let records: Vec<_> = (0..count).map(|offset| record(offset, text(len))).collect();
        let encoded = encode_all(&records);
        let mut group = c.benchmark_group(format!("records: {name}"));
        group.throughput(Throughput::Bytes(encoded.len() as u64));
        group.bench_function("encode", |b| b.iter(|| encode_all(black_box(&records))));
        group.bench_function("decode", |b| b.iter(|| decode_all(black_box(encoded.clone())).expect("records")));
        group.finish();
    }
}

fn frames(c: &mut Criterion) {
    let mut seed = 1u64;
    let mut noise = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as u8
    };
    let random: Vec<u8> = (0..256 * 1024).map(|_| noise()).collect();
    for (name, body) in [("text", text(256 * 1024)), ("random", Bytes::from(random))] {
        let mut encoded = Vec::new();
        frame::encode(&body, &mut encoded).expect("a frame");
        let mut group = c.benchmark_group(format!("frame of 256 KiB: {name}"));
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function("encode", |b| {
            b.iter(|| {
                let mut out = Vec::new();
                frame::encode(black_box(&body), &mut out).expect("a frame");
                out
            });
        });
        group.bench_function("decode", |b| {
            b.iter_batched(
                || BytesMut::from(&encoded[..]),
                |mut buffer| frame::decode(&mut buffer, Limits::MESH).expect("a frame"),
                criterion::BatchSize::LargeInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, records, frames);
criterion_main!(benches);
