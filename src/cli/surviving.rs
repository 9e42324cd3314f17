//! What of a log survived: each epoch up to the checkpoint that the next one went on from. Pure.

use ado_proto::record::{Body, Record};
use ado_proto::{Epoch, Offset, Origin, Seq};

/// A checkpoint that holds the task's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    /// Its record.
    at: Offset,
    /// Who made it.
    epoch: Epoch,
    /// The first record of that epoch which it does not stand for.
    until: Seq,
    /// Somebody went on from it.
    counts: bool,
}

/// Which records of a log survived. Made of its `assigned` and `checkpointed` records; all others may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Surviving {
    /// Of each epoch, in order, the end of what survived of it: the first offset that did not.
    ends: Vec<(Epoch, Offset)>,
    /// Checkpoints that stand for less than all before their record: what was written after they were taken is done again.
    cuts: Vec<Cut>,
    /// The end of what is known of the log.
    known: Offset,
}

impl Surviving {
    /// Takes the next record that was read.
    pub(crate) fn learn(&mut self, record: &Record) {
        self.known = self.known.max(record.offset.next());
        if let (Body::Checkpointed(made), Origin::Worker { epoch, .. }) = (&record.body, record.origin)
            && let Some(snapshot) = made.snapshot
        {
            self.cuts.push(Cut { at: record.offset, epoch, until: snapshot.until, counts: false });
        }
        let Body::Assigned(assigned) = &record.body else { return };
        for cut in self.cuts.iter_mut().filter(|cut| Some(cut.at) == assigned.resumes) {
            cut.counts = true;
        }
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
        let Origin::Worker { epoch, seq } = record.origin else { return true };
        let is_cut = |cut: &Cut| cut.counts && cut.epoch == epoch && seq >= cut.until && cut.at != record.offset;
        if self.cuts.iter().any(is_cut) {
            return false;
        }
        let end = self.ends.iter().find(|(known, _)| *known == epoch).map_or(Offset(0), |(_, end)| *end);
        record.offset < end.min(self.known)
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Assigned, Checkpointed, Note};
    use ado_proto::{BlobId, CheckpointId, Snapshot, TaskId, Timestamp, WorkerId};

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

    #[test]
    fn what_was_written_after_a_folder_was_looked_at_is_done_again() {
        let said = |offset, seq| {
            record(offset, Origin::Worker { epoch: Epoch(1), seq: Seq(seq) }, Note { text: String::new() }.into())
        };
        let snapshot =
            Snapshot { home: TaskId(uuid::Uuid::nil()), manifest: BlobId([0; 32]), until: Seq(2), files: 1, bytes: 1 };
        let id = CheckpointId(uuid::Uuid::nil());
        let made = Checkpointed { id, data: "{}".into(), snapshot: Some(snapshot) };
        let made = record(5, Origin::Worker { epoch: Epoch(1), seq: Seq(4) }, made.into());
        let written = [said(1, 0), said(2, 1), said(3, 2), said(4, 3), made.clone(), said(6, 5)];
        let mut surviving = Surviving::default();
        let kept = |surviving: &Surviving| {
            written.iter().filter(|record| surviving.keeps(record)).map(|record| record.offset.0).collect::<Vec<_>>()
        };
        surviving.learn(&assigned(0, 1, None));
        surviving.learn(&made);
        surviving.learn(&written[5]);
        assert_eq!(kept(&surviving), [1, 2, 3, 4, 5, 6], "nobody has gone on from it");
        surviving.learn(&assigned(7, 2, Some(5)));
        assert_eq!(kept(&surviving), [1, 2, 5]);
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
