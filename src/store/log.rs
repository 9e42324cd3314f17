//! How a log lies in a database, and how pages are cut from it.
//!
//! Lifecycle records (kinds below 100) are rows of their own and stay for ever. Everything else lies in chunks: records
//! end to end, compressed when that helps. A chunk covers a range of offsets; those it lacks are lifecycle rows. So a
//! cap on bytes can drop whole chunks and touch nothing that says what happened.

use ado_proto::record::{self, Body, MAX_BODY, Reader, Record, Truncated};
use ado_proto::{Offset, Origin, Timestamp, compress};

use super::{Error, Result};

/// Kinds from here on are bulk.
const FIRST_BULK_KIND: u16 = 100;
/// A chunk is closed before it grows past this many bytes. Large enough that a row's overhead vanishes, small enough
/// that reading one record of it stays cheap.
const CHUNK_BYTES: usize = 256 * 1024;
/// Longest chunk anybody wrote: one that holds a single record of the largest size.
const MAX_CHUNK: usize = CHUNK_BYTES + MAX_BODY;
/// Below this compression does not pay: a database page is larger.
const COMPRESS_FROM: usize = 1024;
/// Least weight of a record, see [`Record::weight`].
const LEAST_WEIGHT: usize = 48;
/// Records laid end to end.
const PLAIN: u8 = 0;
/// The same as one lz4 block.
const LZ4: u8 = 1;
/// One record that stands for those that were dropped.
pub(super) const DROPPED: u8 = 2;
/// Most chunks that are dropped at once: others write too.
pub(super) const DROP_AT_ONCE: i64 = 64;

/// Records of one task that are stored as one row.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) first: Offset,
    pub(super) last: Offset,
    pub(super) first_time: Timestamp,
    pub(super) last_time: Timestamp,
    /// Newlines in the output: lets `--tail` skip whole chunks.
    pub(super) newlines: usize,
    /// Length before compression.
    pub(super) bytes: usize,
    pub(super) format: u8,
    pub(super) data: Vec<u8>,
}

/// Whether a record lies in chunks.
pub(super) fn is_bulk(record: &Record) -> bool {
    record.body.kind().0 >= FIRST_BULK_KIND
}

/// Packs the bulk records among `records`.
pub(super) fn pack(records: &[Record]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut open: Option<Chunk> = None;
    for record in records.iter().filter(|record| is_bulk(record)) {
        if open.as_ref().is_some_and(|chunk| chunk.data.len() + record.weight() > CHUNK_BYTES) {
            chunks.extend(open.take().map(Chunk::close));
        }
        open.get_or_insert_with(|| Chunk::open(record)).push(record);
    }
    chunks.extend(open.map(Chunk::close));
    chunks
}

impl Chunk {
    fn open(first: &Record) -> Self {
        Self {
            first: first.offset,
            last: first.offset,
            first_time: first.time,
            last_time: first.time,
            newlines: 0,
            bytes: 0,
            format: PLAIN,
            data: Vec::new(),
        }
    }

    fn push(&mut self, record: &Record) {
        record.encode(&mut self.data);
        self.last = record.offset;
        self.last_time = self.last_time.max(record.time);
        if let Body::Output(output) = &record.body {
            self.newlines += newlines(&output.data);
        }
    }

    fn close(mut self) -> Self {
        self.bytes = self.data.len();
        if self.bytes >= COMPRESS_FROM {
            let mut packed = Vec::new();
            if compress::append(&self.data, &mut packed) {
                (self.format, self.data) = (LZ4, packed);
            }
        }
        self
    }
}

/// How many there are. Counted in pieces that a byte can count: sixteen and more at a time then.
fn newlines(data: &[u8]) -> usize {
    let in_piece = |piece: &[u8]| piece.iter().map(|byte| u8::from(*byte == b'\n')).sum::<u8>();
    data.chunks(255).map(|piece| usize::from(in_piece(piece))).sum()
}

/// The records of a chunk as stored.
pub(super) fn unpack(format: u8, bytes: usize, data: Vec<u8>) -> Result<Reader> {
    if bytes > MAX_CHUNK {
        return Err(Error::Damaged(format!("a chunk of {bytes} bytes")));
    }
    match format {
        PLAIN | DROPPED => Ok(Reader::new(data.into())),
        LZ4 => {
            let plain = lz4_flex::block::decompress(&data, bytes);
            let plain = plain.map_err(|error| Error::Damaged(format!("a chunk cannot be decompressed: {error}")))?;
            Ok(Reader::new(plain.into()))
        }
        other => Err(Error::Damaged(format!("a chunk has the unknown format {other}"))),
    }
}

/// One lifecycle record as stored.
pub(super) fn decode_one(data: Vec<u8>) -> Result<Record> {
    let mut records = record::decode_all(data.into()).map_err(damaged)?;
    match (records.pop(), records.is_empty()) {
        (Some(record), true) => Ok(record),
        _ => Err(Error::Damaged("a lifecycle row is not one record".into())),
    }
}

/// Bytes that are not what they should be.
pub(super) fn damaged(error: ado_proto::DecodeError) -> Error {
    Error::Damaged(error.to_string())
}

/// How many records fit into a page of about `max_bytes`: at least one.
pub(super) fn fitting<'a>(records: impl IntoIterator<Item = &'a Record>, max_bytes: usize) -> usize {
    let mut total = 0usize;
    let fits = |record: &&Record| {
        let first = total == 0;
        total = total.saturating_add(record.weight());
        first || total <= max_bytes
    };
    records.into_iter().take_while(fits).count()
}

/// Weight of records together, see [`Record::weight`].
pub(super) fn weight(records: &[Record]) -> usize {
    records.iter().map(Record::weight).sum()
}

/// No page holds more rows than this.
pub(super) fn most_rows(max_bytes: usize) -> usize {
    max_bytes / LEAST_WEIGHT + 1
}

/// Both kinds of records in offset order. Past the last of a limited number of lifecycle records a hole may follow; those
/// before it fill the page already.
pub(super) fn merge(mut bulk: Vec<Record>, own: Vec<Record>) -> Vec<Record> {
    bulk.extend(own);
    bulk.sort_by_key(|record| record.offset);
    bulk
}

/// Puts what stands for dropped records between the lifecycle records among them, which are kept. `records` are in order,
/// of a log from `from` on.
pub(super) fn with_gaps(records: Vec<Record>, from: Offset) -> Vec<Record> {
    let dropped = records.iter().find_map(|record| match &record.body {
        Body::Truncated(dropped) => Some((dropped.clone(), record.time)),
        _ => None,
    });
    let Some((Truncated { from: first, to, bytes }, time)) = dropped else { return records };
    let mut next = from.max(first);
    // How many bytes a part of them had nobody can tell.
    let gap_until = |next: Offset, until: Offset| {
        (next < until).then(|| gap(next, until, if next == first { bytes } else { 0 }, time))
    };
    let mut all = Vec::with_capacity(records.len() + 1);
    for record in records.into_iter().filter(|record| !matches!(record.body, Body::Truncated(_))) {
        all.extend(gap_until(next, record.offset.min(to)));
        next = next.max(record.offset.next());
        all.push(record);
    }
    all.extend(gap_until(next, to));
    all
}

/// Stands for records from an offset to before another. Its offset is the last of them, so that the next record follows it.
fn gap(from: Offset, to: Offset, bytes: u64, time: Timestamp) -> Record {
    let offset = Offset(to.0.saturating_sub(1));
    Record { offset, origin: Origin::Controller, time, body: Truncated { from, to, bytes }.into() }
}

/// A record before an offset; of one that stands for several that part.
pub(super) fn before(mut record: Record, end: Offset) -> Option<Record> {
    if let Body::Truncated(gap) = &mut record.body
        && gap.from < end
        && gap.to > end
    {
        gap.to = end;
        record.offset = Offset(end.0 - 1);
    }
    (record.offset < end).then_some(record)
}

/// A record from an offset on: of one that stands for several that part.
pub(super) fn after(mut record: Record, start: Offset) -> Record {
    if let Body::Truncated(gap) = &mut record.body
        && gap.from < start
    {
        gap.from = start;
        gap.bytes = 0;
    }
    record
}

/// What is known of a chunk without its data.
#[derive(Debug, Clone)]
pub(super) struct Outline {
    pub(super) first: Offset,
    pub(super) last: Offset,
    pub(super) first_time: Timestamp,
    pub(super) last_time: Timestamp,
    /// Of its records; of dropped ones what they had.
    pub(super) bytes: u64,
    pub(super) dropped: bool,
}

/// The chunk that takes the place of the first ones of a log, so that what is left has `most` bytes or less; and how many
/// bytes that are. `None`: nothing has to go. `oldest` are the first chunks, `total` is what all that are kept have.
pub(super) fn shorten(oldest: &[Outline], total: u64, most: u64) -> Option<(Chunk, u64)> {
    if total <= most {
        return None;
    }
    // Some more than necessary, or it would have to be done again at once.
    let goal = most / 8 * 7;
    let mut left = total;
    let is_needed = |chunk: &&Outline| {
        let needed = chunk.dropped || left > goal;
        left -= if needed && !chunk.dropped { chunk.bytes } else { 0 };
        needed
    };
    let going: Vec<_> = oldest.iter().take_while(is_needed).collect();
    let (first, last) = (going.first()?, going.last()?);
    if last.dropped {
        return None;
    }
    let bytes = going.iter().map(|chunk| chunk.bytes).sum();
    let mut data = Vec::new();
    gap(first.first, last.last.next(), bytes, last.last_time).encode(&mut data);
    let chunk = Chunk {
        first: first.first,
        last: last.last,
        first_time: first.first_time,
        last_time: last.last_time,
        newlines: 0,
        bytes: data.len(),
        format: DROPPED,
        data,
    };
    Some((chunk, left))
}

/// How many bytes of output a dropped chunk stands for.
pub(super) fn dropped_bytes(data: Vec<u8>) -> Result<u64> {
    match decode_one(data)?.body {
        Body::Truncated(gap) => Ok(gap.bytes),
        _ => Err(Error::Damaged("what stands for dropped records is something else".into())),
    }
}

/// Wrong bytes are never shown: a hole is damage.
pub(super) fn dense(records: &[Record], from: Option<Offset>) -> Result<()> {
    let mut expected = from;
    for record in records {
        let span = record.span();
        if expected.is_some_and(|expected| expected != span.start) {
            return Err(hole(record.offset));
        }
        expected = Some(span.end);
    }
    Ok(())
}

/// A record that should be there is not.
pub(super) fn hole(offset: Offset) -> Error {
    Error::Damaged(format!("a log lacks the record before offset {offset}"))
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Note, Output, Stream};
    use ado_proto::{Epoch, Origin, Seq};

    use super::*;

    fn output(offset: u64, data: Vec<u8>) -> Record {
        Record {
            offset: Offset(offset),
            origin: Origin::Worker { epoch: Epoch(1), seq: Seq(offset) },
            time: Timestamp(1_000 + offset as i64),
            body: Output { stream: Stream::Stdout, position: 0, data: data.into() }.into(),
        }
    }

    fn unpacked(chunk: Chunk) -> Vec<Record> {
        unpack(chunk.format, chunk.bytes, chunk.data).unwrap().map(|record| record.unwrap()).collect()
    }

    #[test]
    fn chunks_hold_bulk_records_only_and_come_back_as_they_were() {
        let note = Record {
            offset: Offset(1),
            origin: Origin::Controller,
            time: Timestamp(7),
            body: Note { text: "n".into() }.into(),
        };
        let records = [output(0, b"a\nb\n".to_vec()), note, output(2, b"c\n".to_vec())];
        let mut chunks = pack(&records);
        assert_eq!(chunks.len(), 1);
        let chunk = chunks.remove(0);
        assert_eq!((chunk.first, chunk.last, chunk.newlines), (Offset(0), Offset(2), 3));
        assert_eq!((chunk.first_time, chunk.last_time), (Timestamp(1_000), Timestamp(1_002)));
        assert_eq!(unpacked(chunk), [records[0].clone(), records[2].clone()]);
    }

    #[test]
    fn newlines_are_counted() {
        for (length, every) in [(0, 1), (1, 1), (255, 1), (256, 1), (1_000, 1), (1_000, 7), (1_000, 2_000)] {
            let data: Vec<_> = (1..=length).map(|at| if at % every == 0 { b'\n' } else { b'x' }).collect();
            assert_eq!(newlines(&data), length / every, "{length} bytes, one in {every}");
        }
    }

    #[test]
    fn chunks_are_bounded() {
        let records: Vec<_> = (0..20).map(|offset| output(offset, vec![b'x'; 32 * 1024])).collect();
        let chunks = pack(&records);
        assert!(chunks.len() > 1 && chunks.iter().all(|chunk| chunk.bytes <= CHUNK_BYTES));
        assert!(chunks.iter().all(|chunk| chunk.format == LZ4 && chunk.data.len() < chunk.bytes / 10));
        assert_eq!(chunks.into_iter().flat_map(unpacked).collect::<Vec<_>>(), records);
    }

    #[test]
    fn damage_is_an_error() {
        assert!(matches!(unpack(9, 4, vec![0; 4]), Err(Error::Damaged(_))));
        assert!(matches!(unpack(LZ4, 4_000, vec![0xff; 40]), Err(Error::Damaged(_))));
        assert!(matches!(unpack(LZ4, usize::MAX, vec![0; 4]), Err(Error::Damaged(_))));
        assert!(matches!(decode_one(Vec::new()), Err(Error::Damaged(_))));
    }

    fn note(offset: u64) -> Record {
        let body = Note { text: "n".into() }.into();
        Record { offset: Offset(offset), origin: Origin::Controller, time: Timestamp(7), body }
    }

    #[test]
    fn lifecycle_records_stand_between_gaps() {
        let spans = |records: Vec<Record>, from: u64| {
            let all = with_gaps(records, Offset(from));
            dense(&all, Some(Offset(from))).unwrap();
            let show = |record: &Record| match &record.body {
                Body::Truncated(gap) => format!("{}..{} {}", gap.from, gap.to, gap.bytes),
                _ => record.offset.to_string(),
            };
            all.iter().map(show).collect::<Vec<_>>().join(", ")
        };
        let dropped = || gap(Offset(2), Offset(9), 70, Timestamp(8));
        let all = || vec![note(0), note(1), note(4), note(5), dropped(), output(9, vec![1])];
        assert_eq!(spans(all(), 0), "0, 1, 2..4 70, 4, 5, 6..9 0, 9");
        assert_eq!(spans(all()[2..].to_vec(), 3), "3..4 0, 4, 5, 6..9 0, 9");
        assert_eq!(spans(all()[4..].to_vec(), 7), "7..9 0, 9");
        assert_eq!(spans(all()[5..].to_vec(), 9), "9");
        let at_the_end = vec![note(0), note(1), note(2), dropped(), note(8), note(9)];
        let mut sorted = at_the_end;
        sorted.sort_by_key(|record| record.offset);
        assert_eq!(spans(sorted, 0), "0, 1, 2, 3..8 0, 8, 9");
        assert_eq!(before(dropped(), Offset(5)), Some(gap(Offset(2), Offset(5), 70, Timestamp(8))));
        assert_eq!((before(dropped(), Offset(2)), before(note(4), Offset(4))), (None, None));
    }

    #[test]
    fn the_oldest_chunks_go_and_one_stands_for_them() {
        let outline = |first: u64, bytes: u64, dropped: bool| Outline {
            first: Offset(first),
            last: Offset(first + 4),
            first_time: Timestamp(first as i64),
            last_time: Timestamp(first as i64 + 4),
            bytes,
            dropped,
        };
        let all = [outline(0, 900, true), outline(5, 40, false), outline(10, 40, false), outline(15, 40, false)];
        assert!(shorten(&all, 120, 120).is_none());
        let (chunk, left) = shorten(&all, 120, 100).unwrap();
        assert_eq!(
            (chunk.first, chunk.last, chunk.first_time, chunk.last_time, left),
            (Offset(0), Offset(9), Timestamp(0), Timestamp(9), 80)
        );
        assert_eq!(dropped_bytes(chunk.data.clone()).unwrap(), 940);
        assert_eq!(unpacked(chunk), [gap(Offset(0), Offset(10), 940, Timestamp(9))]);
        let (chunk, left) = shorten(&all[1..], 120, 0).unwrap();
        assert_eq!((chunk.first, chunk.last, left), (Offset(5), Offset(19), 0));
        assert!(shorten(&all[..1], 120, 0).is_none(), "what is gone is gone");
    }

    #[test]
    fn a_page_has_at_least_one_record() {
        let records: Vec<_> = (0..4).map(|offset| output(offset, vec![0; 52])).collect();
        assert_eq!(fitting(&records, 0), 1);
        assert_eq!(fitting(&records, 299), 2);
        assert_eq!(fitting(&records, 300), 3);
        assert_eq!(fitting([], 300), 0);
    }
}
