//! Logs made by hand, good and bad: the oracle must see the difference.

use std::fmt::Write as _;

use ado_proto::record::{
    Assigned, Checkpointed, Ended, Exited, Loss, Note, Output, Requeued, Started, Submitted, WorkerLost,
};
use ado_proto::spec::{Containment, Input, TaskSpec};
use ado_proto::{CheckpointId, Seq, Timestamp, WorkerId};
use uuid::Uuid;

use super::*;

const TASK: TaskId = TaskId(Uuid::from_u128(7));

/// A log under construction, and the notes of its agents.
#[derive(Default)]
struct Story {
    log: Vec<Record>,
    notes: String,
    seqs: BTreeMap<u64, u64>,
    positions: BTreeMap<(u64, Stream), u64>,
}

impl Story {
    fn push(&mut self, origin: Origin, body: impl Into<Body>) -> &mut Self {
        let offset = Offset(self.log.len() as u64);
        let time = Timestamp(1000 + self.log.len() as i64);
        self.log.push(Record { offset, origin, time, body: body.into() });
        self
    }

    fn own(&mut self, body: impl Into<Body>) -> &mut Self {
        self.push(Origin::Controller, body)
    }

    fn said(&mut self, epoch: u64, body: impl Into<Body>) -> &mut Self {
        let seq = self.seqs.entry(epoch).or_default();
        let origin = Origin::Worker { epoch: Epoch(epoch), seq: Seq(*seq) };
        *seq += 1;
        self.push(origin, body)
    }

    fn submitted(&mut self) -> &mut Self {
        let spec = TaskSpec::new("shell", Input::Text("true".into()));
        let owner = "user/ann".into();
        self.own(Submitted { namespace: Default::default(), owner, name: None, group: None, spec })
    }

    fn assigned(&mut self, epoch: u64, resumes: Option<u64>) -> &mut Self {
        self.own(Assigned {
            worker: WorkerId(Uuid::from_u128(9)),
            worker_name: "w".into(),
            epoch: Epoch(epoch),
            attempt: 1,
            resumes: resumes.map(Offset),
        })
    }

    fn begins(&mut self, epoch: u64, at: u64) -> &mut Self {
        writeln!(self.notes, "{epoch} begin {at} 77").unwrap();
        self.said(epoch, Started { pid: 1, containment: Containment::Subreaper })
    }

    fn out(&mut self, epoch: u64, n: u64) -> &mut Self {
        writeln!(self.notes, "{epoch} out {n}").unwrap();
        let text = format!("{TASK} {epoch} {n} {}\n", (n * 7919 + epoch * 104_729) % 65_521);
        self.text(epoch, Stream::Stdout, &text)
    }

    fn text(&mut self, epoch: u64, stream: Stream, text: &str) -> &mut Self {
        let next = self.positions.entry((epoch, stream)).or_default();
        let position = *next;
        *next += text.len() as u64;
        self.said(epoch, Output { stream, position, data: text.as_bytes().to_vec().into() })
    }

    fn keep(&mut self, epoch: u64, n: u64) -> &mut Self {
        writeln!(self.notes, "{epoch} keep {n}\n{epoch} kept {n}").unwrap();
        self.said(
            epoch,
            Checkpointed { id: CheckpointId(Uuid::from_u128(n.into())), data: n.to_string(), snapshot: None },
        )
    }

    fn lost(&mut self, epoch: u64) -> &mut Self {
        let worker = WorkerId(Uuid::from_u128(9));
        self.own(WorkerLost { worker, epoch: Epoch(epoch), why: Loss::Silent, charged: false });
        self.own(Requeued { not_before: Timestamp(0), charged: false, why: "it went silent".into() })
    }

    fn exits(&mut self, epoch: u64, exit: Exit) -> &mut Self {
        if exit.is_success() {
            writeln!(self.notes, "{epoch} end 0").unwrap();
        }
        self.said(epoch, Exited { exit })
    }

    fn completed(&mut self) -> &mut Self {
        self.own(Ended { outcome: Outcome::Completed, exit: Some(Exit::Code(0)), error: None })
    }

    fn evidence(&self) -> Evidence {
        Evidence {
            task: TASK,
            log: self.log.clone(),
            stored: self.log.clone(),
            rows: None,
            journal: Journal::read(&TASK.to_string(), &self.notes),
            views: vec![View { from: 0, seen: self.log.iter().map(Seen::of).collect() }],
            survived: None,
            unguarded: false,
        }
    }
}

/// Two lines and a checkpoint, one more that is lost with the worker; the next epoch goes on from the checkpoint.
fn two_epochs() -> Story {
    let mut story = Story::default();
    story.submitted().assigned(1, None).begins(1, 0).out(1, 1).out(1, 2).keep(1, 2).out(1, 3).lost(1);
    story.assigned(2, Some(5)).begins(2, 2).out(2, 3).out(2, 4).exits(2, Exit::Code(0)).completed();
    story
}

#[track_caller]
fn finds(evidence: &Evidence, what: &str) {
    let found = judge(evidence);
    assert!(found.iter().any(|finding| finding.contains(what)), "`{what}` is not among {found:#?}");
}

#[track_caller]
fn finds_after(change: impl FnOnce(&mut Evidence), what: &str) {
    let mut evidence = two_epochs().evidence();
    change(&mut evidence);
    finds(&evidence, what);
}

#[test]
fn nothing_is_wrong_with_a_good_log() {
    let mut evidence = two_epochs().evidence();
    let line = |epoch: u64, n: u64| format!("{TASK} {epoch} {n} {}\n", (n * 7919 + epoch * 104_729) % 65_521);
    evidence.survived = Some([line(1, 1), line(1, 2), line(2, 3), line(2, 4)].concat().into_bytes());
    evidence.views.push(View { from: 6, seen: evidence.log[6..].iter().map(Seen::of).collect() });
    assert_eq!(judge(&evidence), [""; 0]);
}

#[test]
fn a_cut_off_prefix_of_a_lost_epoch_is_good_and_of_the_completing_one_is_not() {
    // What the worker had not sent is lost with it.
    let mut lost = two_epochs();
    lost.notes = lost.notes.replace("1 out 3\n", "1 out 3\n1 out 4\n1 err 5\n");
    assert_eq!(judge(&lost.evidence()), [""; 0]);
    let mut cut = two_epochs();
    cut.notes = cut.notes.replace("2 end 0\n", "2 out 5\n2 end 0\n");
    finds(&cut.evidence(), "its agent wrote");
}

#[test]
fn a_killed_agent_may_have_noted_one_deed_it_did_not_do() {
    let story = |more: &str| {
        let mut story = Story::default();
        story.submitted().assigned(1, None).begins(1, 0).out(1, 1);
        story.notes.push_str(more);
        story.exits(1, Exit::Signal(9));
        let error = Some("killed by signal 9".into());
        story.own(Ended { outcome: Outcome::Failed, exit: Some(Exit::Signal(9)), error });
        story.evidence()
    };
    assert_eq!(judge(&story("1 out 2\n")), [""; 0]);
    assert_eq!(judge(&story("1 out 2\n1 ou")), [""; 0], "it died over its note");
    finds(&story("1 out 2\n1 out 3\n"), "its agent wrote");
}

#[test]
fn offsets_times_and_the_end() {
    finds_after(|evidence| drop(evidence.log.remove(4)), "offset: 5 where 4");
    finds_after(|evidence| evidence.log.swap(3, 4), "offset: 4 where 3");
    finds_after(|evidence| evidence.log[6].time = Timestamp(0), "time falls at offset 6");
    finds_after(|evidence| drop(evidence.log.pop()), "no terminal state");
    let mut twice = two_epochs();
    twice.completed();
    finds(&twice.evidence(), "a record after the end");
}

#[test]
fn writes_of_stale_epochs() {
    let mut late = Story::default();
    late.submitted().assigned(1, None).begins(1, 0).out(1, 1).lost(1).out(1, 2);
    finds(&late.evidence(), "a stale write was accepted: epoch 1 at offset 6, when nobody held it");
    late.assigned(2, None).begins(2, 0).out(1, 3);
    finds(&late.evidence(), "a stale write was accepted: epoch 1 at offset 9, in epoch 2");
    let mut after = Story::default();
    after.submitted().assigned(1, None).begins(1, 0).exits(1, Exit::Code(0)).out(1, 1).completed();
    finds(&after.evidence(), "a stale write was accepted");
}

#[test]
fn epochs_rise_and_each_seam_is_marked() {
    let mut same = Story::default();
    same.submitted().assigned(1, None).lost(1).assigned(1, None);
    finds(&same.evidence(), "an epoch that does not rise");
    let mut unmarked = Story::default();
    unmarked.submitted().assigned(1, None).begins(1, 0).assigned(2, None);
    finds(&unmarked.evidence(), "assigned at offset 3, where it has no place");
    let mut unlost = Story::default();
    unlost.submitted().lost(1);
    finds(&unlost.evidence(), "worker_lost at offset 1");
    let mut anew = two_epochs();
    anew.log.truncate(9);
    anew.assigned(2, None);
    finds(&anew.evidence(), "checkpoint that epoch 2 goes on from: none where 5");
    let mut early = Story::default();
    early.submitted().assigned(1, None).completed();
    finds(&early.evidence(), "the end at offset 2, where it has no place");
    finds(&early.evidence(), "completed without an exit of 0");
}

#[test]
fn seqs_are_dense_and_said_once() {
    let mut twice = Story::default();
    twice.submitted().assigned(1, None).begins(1, 0).out(1, 1);
    let again = twice.log[3].clone();
    twice.push(again.origin, again.body);
    finds(&twice.evidence(), "seq of epoch 1 at offset 4: 1 where 2");
    finds(&twice.evidence(), "position in epoch 1 at offset 4: 0 where");
    let mut hole = Story::default();
    hole.submitted().assigned(1, None).begins(1, 0);
    hole.push(Origin::Worker { epoch: Epoch(1), seq: Seq(2) }, Note { text: "x".into() });
    finds(&hole.evidence(), "seq of epoch 1 at offset 3: 2 where 1");
}

#[test]
fn output_is_what_the_agent_wrote() {
    let replaced = |evidence: &mut Evidence| {
        let Body::Output(output) = &mut evidence.log[3].body else { panic!("output") };
        output.data = vec![b'x'; output.data.len()].into();
    };
    finds_after(replaced, "Stdout of epoch 1");
    finds_after(|evidence| drop(evidence.stored.pop()), "records in the tables");
    finds_after(|evidence| evidence.stored[2].time = Timestamp(7), "at offset 2 the tables hold");
    finds_after(|evidence| evidence.log.retain(|record| record.offset != Offset(5)), "was acknowledged and is not");
}

#[test]
fn agents_do_not_meet() {
    let mut met = two_epochs();
    met.notes += "1 out 4\n";
    finds(&met.evidence(), "two agents at once: epoch 1");
    let excused = Evidence { unguarded: true, ..met.evidence() };
    assert_eq!(judge(&excused), [""; 0]);
    let mut stranger = two_epochs();
    stranger.notes += "3 begin 0 5\n";
    finds(&stranger.evidence(), "the unknown epoch 3");
    let mut second = two_epochs();
    second.notes = second.notes.replace("1 out 1\n", "1 begin 0 78\n1 out 1\n");
    finds(&second.evidence(), "epoch 1 was begun twice");
}

#[test]
fn whoever_goes_on_begins_where_its_checkpoint_says() {
    let mut elsewhere = two_epochs();
    elsewhere.notes = elsewhere.notes.replace("2 begin 2", "2 begin 1");
    finds(&elsewhere.evidence(), "epoch 2 began at Some(1), its checkpoint says 2");
    finds_after(|evidence| evidence.survived = Some(b"something else\n".to_vec()), "logs --final");
}

#[test]
fn viewers_see_each_record_once_in_order() {
    finds_after(|evidence| drop(evidence.views[0].seen.remove(3)), "offset Some(4) where Some(3)");
    finds_after(|evidence| evidence.views[0].seen.insert(3, Seen { offset: 2, data: None }), "Some(2) where Some(3)");
    finds_after(|evidence| drop(evidence.views[0].seen.pop()), "offset None where");
    finds_after(|evidence| evidence.views[0].seen[3].data = Some(b"?".to_vec()), "after 3 it saw");
}

#[test]
fn submissions_happen_once() {
    let ids: Vec<_> = (0..4).map(|number| TaskId(Uuid::from_u128(number))).collect();
    let accepted = [ids[..2].to_vec(), ids[2..].to_vec()];
    assert_eq!(judge_submissions(&accepted, &[(ids.clone(), ids.clone())], &ids), [""; 0]);
    let found = judge_submissions(&accepted, &[(ids[..2].to_vec(), ids[2..].to_vec())], &ids[..3]);
    assert!(found[0].contains("is not there") && found[1].contains("a repeated submission"), "{found:?}");
    assert!(judge_submissions(&accepted[..1], &[], &ids)[0].contains("a submission happened twice"));
    let twice = [ids[..2].to_vec(), ids[..2].to_vec()];
    assert!(judge_submissions(&twice, &[], &ids[..2])[0].contains("tasks that were accepted: 2 where 4"));
}
