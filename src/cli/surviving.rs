//! What of a log survived: each epoch up to the checkpoint that the next one went on from. Pure.

use ado_proto::record::{Body, Record};
use ado_proto::{Epoch, Offset, Origin};

/// Which records of a log survived. Made of its `assigned` records; all others may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Surviving {
    /// Of each epoch, in order, the end of what survived of it: the first offset that did not.
    ends: Vec<(Epoch, Offset)>,
    /// The end of what is known of the log.
    known: Offset,
}

impl Surviving {
    /// Takes the next record that was read.
    pub(crate) fn learn(&mut self, record: &Record) {
        self.known = self.known.max(record.offset.next());
        let Body::Assigned(assigned) = &record.body else { return };
        // The checkpoint's own record survives; whoever begins anew leaves nothing of those before.
        let end = assigned.resumes.map_or(Offset(0), |checkpoint| checkpoint.next());
        for (_, before) in &mut self.ends {
            *before = end.min(*before);
        }
        self.ends.push((assigned.epoch, Offset(u64::MAX)));
    }

    /// Whether a record belongs to what survived. What a controller wrote does, being about the task as a whole; of what
    /// comes after everything known nobody can tell.
    pub(crate) fn keeps(&self, record: &Record) -> bool {
        let Origin::Worker { epoch, .. } = record.origin else { return true };
        let end = self.ends.iter().find(|(known, _)| *known == epoch).map_or(Offset(0), |(_, end)| *end);
        record.offset < end.min(self.known)
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Assigned, Note};
    use ado_proto::{Seq, Timestamp, WorkerId};

    use super::*;

    fn record(offset: u64, origin: Origin, body: Body) -> Record {
        Record { offset: Offset(offset), origin, time: Timestamp(0), body }
    }

    fn assigned(offset: u64, epoch: u64, resumes: Option<u64>) -> Record {
        let body = Assigned {
            worker: WorkerId(uuid::Uuid::nil()),
            worker_name: "box".into(),
            epoch: Epoch(epoch),
            attempt: 1,
            resumes: resumes.map(Offset),
        };
        record(offset, Origin::Controller, body.into())
    }

    fn said(offset: u64, epoch: u64) -> Record {
        record(offset, Origin::Worker { epoch: Epoch(epoch), seq: Seq(0) }, Note { text: String::new() }.into())
    }

    /// Logs of which each epoch is 10 records long, its assignment first; which offsets survive.
    fn surviving(resumes: &[Option<u64>]) -> Vec<u64> {
        let mut surviving = Surviving::default();
        let mut all = Vec::new();
        for (epoch, resumes) in (1..).zip(resumes) {
            let begin = epoch * 10;
            surviving.learn(&assigned(begin, epoch, *resumes));
            all.extend((begin + 1..begin + 10).map(|offset| said(offset, epoch)));
        }
        surviving.learn(all.last().unwrap());
        all.iter().filter(|record| surviving.keeps(record)).map(|record| record.offset.0).collect()
    }

    fn range(from: u64, to: u64) -> Vec<u64> {
        (from..=to).collect()
    }

    #[test]
    fn one_epoch_survives_whole() {
        assert_eq!(surviving(&[None]), range(11, 19));
    }

    #[test]
    fn whoever_begins_anew_leaves_nothing_before() {
        assert_eq!(surviving(&[None, None]), range(21, 29));
        assert_eq!(surviving(&[None, Some(15), None]), range(31, 39));
    }

    #[test]
    fn an_epoch_survives_up_to_the_checkpoint_that_was_gone_on_from() {
        assert_eq!(surviving(&[None, Some(15)]), [range(11, 15), range(21, 29)].concat());
        let each = surviving(&[None, Some(15), Some(23)]);
        assert_eq!(each, [range(11, 15), range(21, 23), range(31, 39)].concat());
    }

    #[test]
    fn one_that_made_no_checkpoint_leaves_nothing_of_its_own() {
        assert_eq!(surviving(&[None, Some(15), Some(15)]), [range(11, 15), range(31, 39)].concat());
    }

    #[test]
    fn what_came_later_than_the_look_is_not_guessed_at() {
        let mut surviving = Surviving::default();
        surviving.learn(&assigned(1, 1, None));
        surviving.learn(&said(2, 1));
        assert!(surviving.keeps(&said(2, 1)));
        assert!(!surviving.keeps(&said(3, 1)) && !surviving.keeps(&said(3, 2)));
        assert!(surviving.keeps(&assigned(0, 1, None)), "a controller's is about the whole task");
    }
}
