//! Frames: what a stream is cut into. `varint length | flag byte | body`.
//!
//! Flag bit 0 means the body is `varint decompressed length | lz4 block`. Both lengths are checked against [`Limits`]
//! before anything is allocated, so a peer cannot make us hold more than the limit.

use bytes::{Buf, Bytes, BytesMut};

use crate::compress;

/// Bodies at least this long are compressed when that makes them shorter; see [`compress::append`].
pub const COMPRESS_FROM: usize = 1024;

const LZ4: u8 = 1;
/// Copying as much is cheaper than sending two pieces.
const COPY_BELOW: usize = 16 * 1024;
/// Most bytes that are set aside for an announced length before they have come: a promise costs a peer nothing.
const MAX_RESERVE: usize = 64 * 1024;
/// Or as many for each byte that has come: a frame of the largest size is moved once while it grows, not over and over.
const RESERVE_FOR_EACH: usize = 7;
/// A varint of at most 32 bits takes at most five bytes.
const MAX_VARINT: usize = 5;

/// Largest frame that is accepted. A value decoded from a body may take up to 72 times the body's length (a list of empty
/// strings, while it grows); `proto/tests/allocation.rs` measures it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes on the wire after the length.
    pub wire: usize,
    /// Bytes of the body after decompression.
    pub body: usize,
}

impl Limits {
    /// For peers with a certificate of the mesh.
    pub const MESH: Self = Self { wire: 1024 * 1024, body: 1024 * 1024 };
    /// For peers that have not proved who they are.
    pub const STRANGER: Self = Self { wire: 16 * 1024, body: 16 * 1024 };
}

/// Why a frame was refused. The stream it came on is of no further use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame, or its decompressed body, is longer than the limit.
    #[error("frame of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Announced length.
        size: u64,
        /// What is accepted.
        limit: usize,
    },
    /// The length is not a varint of 32 bits, or a flag is unknown, or lz4 data is broken.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
    /// The body is longer than a sender may make it.
    #[error("body of {size} bytes exceeds the limit of {limit}")]
    BodyTooLarge {
        /// Length of the body.
        size: usize,
        /// What may be sent.
        limit: usize,
    },
}

/// Appends `body` as one frame.
///
/// # Errors
/// [`FrameError::BodyTooLarge`] when no peer would accept it.
pub fn encode(body: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    check(body.len())?;
    if body.len() >= COMPRESS_FROM {
        let mut packed = Vec::with_capacity(MAX_VARINT);
        put_varint(body.len(), &mut packed);
        if compress::append(body, &mut packed) && packed.len() < body.len() {
            put(LZ4, &packed, out);
            return Ok(());
        }
    }
    put(0, body, out);
    Ok(())
}

/// The frame of a body that is given in two pieces. The second one is not copied if it is long and not worth compressing.
///
/// # Errors
/// [`FrameError::BodyTooLarge`] when no peer would accept it.
pub fn encode_pieces(head: &[u8], bulk: Bytes) -> Result<[Bytes; 2], FrameError> {
    let size = head.len() + bulk.len();
    check(size)?;
    let mut out = Vec::new();
    if bulk.len() < COPY_BELOW || compress::is_promising(&bulk) {
        let mut body = Vec::with_capacity(size);
        body.extend_from_slice(head);
        body.extend_from_slice(&bulk);
        encode(&body, &mut out)?;
        return Ok([out.into(), Bytes::new()]);
    }
    out.reserve(MAX_VARINT + 1 + head.len());
    put_varint(size + 1, &mut out);
    out.push(0);
    out.extend_from_slice(head);
    Ok([out.into(), bulk])
}

fn check(size: usize) -> Result<(), FrameError> {
    // A body at the limit and the flag must fit the wire limit even when not compressed.
    let limit = Limits::MESH.body.min(Limits::MESH.wire - 1);
    if size > limit { Err(FrameError::BodyTooLarge { size, limit }) } else { Ok(()) }
}

fn put(flags: u8, body: &[u8], out: &mut Vec<u8>) {
    out.reserve(MAX_VARINT + 1 + body.len());
    put_varint(body.len() + 1, out);
    out.push(flags);
    out.extend_from_slice(body);
}

/// Takes the first whole frame off `buffer`; `None` means more bytes are needed.
///
/// # Errors
/// See [`FrameError`].
pub fn decode(buffer: &mut BytesMut, limits: Limits) -> Result<Option<Bytes>, FrameError> {
    let Some((length, head)) = take_varint(buffer)? else { return Ok(None) };
    if length == 0 {
        return Err(FrameError::Malformed("no flag byte"));
    }
    if length > limits.wire as u64 {
        return Err(FrameError::TooLarge { size: length, limit: limits.wire });
    }
    let length = usize::try_from(length).expect("checked against a usize");
    if buffer.len() < head + length {
        buffer.reserve((head + length - buffer.len()).min(MAX_RESERVE.max(RESERVE_FOR_EACH * buffer.len())));
        return Ok(None);
    }
    buffer.advance(head);
    let flags = buffer[0];
    let body = buffer.split_to(length).freeze().slice(1..);
    match flags {
        0 if body.len() > limits.body => Err(FrameError::TooLarge { size: body.len() as u64, limit: limits.body }),
        0 => Ok(Some(body)),
        LZ4 => unpack(&body, limits).map(Some),
        _ => Err(FrameError::Malformed("unknown flag")),
    }
}

fn unpack(body: &[u8], limits: Limits) -> Result<Bytes, FrameError> {
    let (size, head) = take_varint(body)?.ok_or(FrameError::Malformed("no decompressed length"))?;
    if size > limits.body as u64 {
        return Err(FrameError::TooLarge { size, limit: limits.body });
    }
    let size = usize::try_from(size).expect("checked against a usize");
    let unpacked =
        lz4_flex::block::decompress(&body[head..], size).map_err(|_| FrameError::Malformed("broken lz4 data"))?;
    if unpacked.len() != size {
        return Err(FrameError::Malformed("wrong decompressed length"));
    }
    Ok(unpacked.into())
}

fn put_varint(value: usize, out: &mut Vec<u8>) {
    let mut value = u32::try_from(value).expect("lengths are below the frame limit");
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// LEB128, at most 32 bits. Returns the value and how many bytes it took.
fn take_varint(buffer: &[u8]) -> Result<Option<(u64, usize)>, FrameError> {
    let mut value = 0u64;
    for (index, byte) in buffer.iter().take(MAX_VARINT).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return if value > u64::from(u32::MAX) {
                Err(FrameError::Malformed("length over 32 bits"))
            } else {
                Ok(Some((value, index + 1)))
            };
        }
    }
    if buffer.len() >= MAX_VARINT { Err(FrameError::Malformed("length over 32 bits")) } else { Ok(None) }
}
