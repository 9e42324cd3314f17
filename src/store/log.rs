//! How a log lies in a database, and how pages are cut from it.
//!
//! Lifecycle records (kinds below 100) are rows of their own and stay for ever. Everything else lies in chunks: records
//! end to end, compressed when that helps. A chunk covers a range of offsets; those it lacks are lifecycle rows. So a
//! cap on bytes can drop whole chunks and touch nothing that says what happened.

use ado_proto::record::{self, Body, MAX_BODY, Reader, Record};
use ado_proto::{Offset, Timestamp};

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
            self.newlines += output.data.iter().filter(|byte| **byte == b'\n').count();
        }
    }

    fn close(mut self) -> Self {
        self.bytes = self.data.len();
        if self.bytes >= COMPRESS_FROM {
            let packed = lz4_flex::block::compress(&self.data);
            if packed.len() < self.bytes {
                (self.format, self.data) = (LZ4, packed);
            }
        }
        self
    }
}

/// The records of a chunk as stored.
pub(super) fn unpack(format: u8, bytes: usize, data: Vec<u8>) -> Result<Reader> {
    if bytes > MAX_CHUNK {
        return Err(Error::Damaged(format!("a chunk of {bytes} bytes")));
    }
    match format {
        PLAIN => Ok(Reader::new(data.into())),
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

/// Wrong bytes are never shown: a hole is damage.
pub(super) fn dense(records: &[Record], from: Option<Offset>) -> Result<()> {
    let mut expected = from;
    for record in records {
        if expected.is_some_and(|expected| expected != record.offset) {
            return Err(hole(record.offset));
        }
        expected = Some(record.offset.next());
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

    #[test]
    fn a_page_has_at_least_one_record() {
        let records: Vec<_> = (0..4).map(|offset| output(offset, vec![0; 52])).collect();
        assert_eq!(fitting(&records, 0), 1);
        assert_eq!(fitting(&records, 299), 2);
        assert_eq!(fitting(&records, 300), 3);
        assert_eq!(fitting([], 300), 0);
    }
}
