//! Whether bytes are worth compressing. Bulk passes several hands, each of which would compress it: what does not shrink
//! (archives, pictures, keys) is found out on a small part of it.

use lz4_flex::block::{compress_into, get_maximum_output_size};

/// Up to this length all is tried: a sample would cost as much.
const TRY_ALL: usize = 8 * 1024;
/// Length of a piece of the sample. Lines of a log repeat within it.
const PIECE: usize = 2 * 1024;
/// There is a piece for so many bytes, at least two and at most [`MOST_PIECES`].
const PIECE_FOR: usize = 32 * 1024;
const MOST_PIECES: usize = 8;
/// A sample has to shrink by this part of it: less does not pay for the rest.
const LEAST_GAIN: usize = 16;

/// Appends `data` as one lz4 block and returns `true` when that is shorter than `data`; otherwise, or when a sample says
/// that it would not be by much, `out` is as it was.
pub fn append(data: &[u8], out: &mut Vec<u8>) -> bool {
    if !is_promising(data) {
        return false;
    }
    let head = out.len();
    out.resize(head + get_maximum_output_size(data.len()), 0);
    let written = compress_into(data, &mut out[head..]).expect("the buffer has lz4's maximum output size");
    let shorter = written < data.len();
    out.truncate(if shorter { head + written } else { head });
    shorter
}

/// Whether `data` is worth a try. Looks at pieces spread evenly over it, from its first byte to its last.
pub(crate) fn is_promising(data: &[u8]) -> bool {
    if data.len() <= TRY_ALL {
        return true;
    }
    let pieces = (data.len() / PIECE_FOR).clamp(2, MOST_PIECES);
    let last = data.len() - PIECE;
    let mut packed = [0; get_maximum_output_size(PIECE)];
    let sizes = (0..pieces).map(|index| {
        let begin = last / (pieces - 1) * index;
        compress_into(&data[begin..begin + PIECE], &mut packed).expect("the buffer has lz4's maximum output size")
    });
    sizes.sum::<usize>() <= pieces * (PIECE - PIECE / LEAST_GAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut seed = 1u64;
        let next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    fn lines(len: usize) -> Vec<u8> {
        let text: String = (0..).map(|n| format!("{n} of the lines of a log\n")).take(len / 20 + 1).collect();
        text.as_bytes()[..len].to_vec()
    }

    fn is_packed(data: &[u8]) -> bool {
        let mut out = b"head".to_vec();
        let packed = append(data, &mut out);
        assert_eq!(&out[..4], b"head");
        match packed {
            true => assert_eq!(lz4_flex::block::decompress(&out[4..], data.len()).unwrap(), data),
            false => assert_eq!(out.len(), 4),
        }
        packed
    }

    #[test]
    fn what_shrinks_is_compressed_and_the_rest_is_left_alone() {
        for len in [1, 100, TRY_ALL, TRY_ALL + 1, 3 * PIECE_FOR, 1024 * 1024] {
            assert!(!is_packed(&noise(len)), "{len} bytes of noise");
            assert_eq!(is_packed(&lines(len)), len >= 100, "{len} bytes of lines");
        }
        assert!(!is_packed(&[]));
    }

    #[test]
    fn a_sample_reaches_from_the_first_byte_to_the_last() {
        let len = 4 * PIECE_FOR;
        for text in [0, len - PIECE] {
            let mut data = noise(len);
            data[text..text + PIECE].copy_from_slice(&[b'x'; PIECE]);
            assert!(is_promising(&data), "text at {text}");
        }
        assert!(!is_promising(&noise(len)));
    }
}
