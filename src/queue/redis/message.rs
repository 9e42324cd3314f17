//! What one controller publishes to the others. A peer of another build may say something else: then all that is known
//! is that something was said.

use ado_proto::{Offset, TaskId};
use uuid::Uuid;

use crate::queue::wakes::{News, Word};

const VERSION: u8 = 2;
/// A message holds as many logs as [`News`] does, of at most 27 bytes each.
const MAX_BYTES: usize = 256 * 1024;

/// Version, who says it, whether something is missing, the logs, and words.
type Message = (u8, Uuid, bool, Vec<(TaskId, Offset)>, Vec<Word>);

pub(super) fn encode(from: Uuid, news: News) -> Vec<u8> {
    let message: Message = (VERSION, from, news.missed, news.grown.into_iter().collect(), news.words);
    postcard::to_stdvec(&message).expect("plain values can be written to memory")
}

/// `None`: one's own words.
pub(super) fn decode(own: Uuid, bytes: &[u8]) -> Option<News> {
    let message = (bytes.len() <= MAX_BYTES).then(|| postcard::from_bytes::<Message>(bytes).ok()).flatten();
    match message {
        Some((VERSION, from, ..)) if from == own => None,
        Some((VERSION, _, missed, grown, words)) => Some(News { grown: grown.into_iter().collect(), missed, words }),
        _ => Some(News { missed: true, ..News::default() }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn others_read_what_was_written() {
        let grown = BTreeMap::from([(TaskId(id(7)), Offset(300)), (TaskId(id(8)), Offset(u64::MAX))]);
        for missed in [false, true] {
            let words = vec![Word::Unplaced, Word::Left { asked: id(3), viewers: 2 }];
            let news = News { grown: grown.clone(), missed, words };
            let bytes = encode(id(1), news.clone());
            assert_eq!(decode(id(2), &bytes), Some(news));
            assert_eq!(decode(id(1), &bytes), None, "nobody listens to himself");
        }
    }

    #[test]
    fn what_cannot_be_read_was_missed() {
        let missed = Some(News { missed: true, ..News::default() });
        let mut newer = encode(id(1), News::default());
        newer[0] = VERSION + 1;
        let truncated = &encode(id(1), News { grown: [(TaskId(id(7)), Offset(3))].into(), ..News::default() })[..20];
        for bytes in [&b""[..], b"hello", &newer, truncated, &vec![VERSION; MAX_BYTES + 1]] {
            assert_eq!(decode(id(2), bytes), missed, "{bytes:?}");
        }
    }
}
