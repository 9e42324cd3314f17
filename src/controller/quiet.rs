//! Logs for viewers that want to know what happens to a task, not what it writes: runs of output become one record each.
//! Pure.

use ado_proto::record::{Body, Record, Skipped};
use ado_proto::{Offset, Origin};

/// Puts one [`Skipped`] in the place of every run of output. The run that may still grow is held back.
#[derive(Default)]
pub(super) struct Quiet {
    run: Option<Record>,
}

impl Quiet {
    /// Takes the next records of a log. Returns those that can be sent: up to the last one that is not output.
    pub(super) fn take(&mut self, records: Vec<Record>) -> Vec<Record> {
        let mut ready = Vec::new();
        for record in records {
            match &record.body {
                Body::Output(output) => self.skip(&record, output.data.len() as u64),
                _ => {
                    ready.extend(self.run.take());
                    ready.push(record);
                }
            }
        }
        ready
    }

    /// Whether a run is held back.
    pub(super) fn holds(&self) -> bool {
        self.run.is_some()
    }

    /// The run that was held back, as far as it has got.
    pub(super) fn flush(&mut self) -> Option<Record> {
        self.run.take()
    }

    fn skip(&mut self, output: &Record, bytes: u64) {
        let run = self.run.get_or_insert_with(|| stand_in(output.offset));
        run.offset = output.offset;
        run.time = output.time;
        if let Body::Skipped(skipped) = &mut run.body {
            skipped.to = output.offset.next();
            skipped.bytes += bytes;
        }
    }
}

/// Stands for no output yet. Its offset is that of the last record it stands for, so that the next one follows it.
fn stand_in(from: Offset) -> Record {
    let body = Skipped { from, to: from, bytes: 0 }.into();
    Record { offset: from, origin: Origin::Controller, time: ado_proto::Timestamp(0), body }
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Note, Output, Progress, Stream};
    use ado_proto::{Epoch, Seq, Timestamp};

    use super::*;

    fn record(offset: u64, body: Body) -> Record {
        let origin = Origin::Worker { epoch: Epoch(1), seq: Seq(offset) };
        Record { offset: Offset(offset), origin, time: Timestamp(offset as i64), body }
    }

    fn output(offset: u64) -> Record {
        record(offset, Output { stream: Stream::Stdout, position: 0, data: vec![b'x'; 10].into() }.into())
    }

    fn note(offset: u64) -> Record {
        record(offset, Note { text: String::new() }.into())
    }

    fn skipped(from: u64, to: u64) -> Record {
        Record {
            origin: Origin::Controller,
            ..record(to - 1, Skipped { from: Offset(from), to: Offset(to), bytes: (to - from) * 10 }.into())
        }
    }

    #[test]
    fn every_run_is_one_record_however_it_is_cut_into_pages() {
        let progress = record(6, Progress { percent: Some(4), message: None }.into());
        let log =
            [note(0), output(1), output(2), note(3), output(4), output(5), progress.clone(), output(7), output(8)];
        let expected = [note(0), skipped(1, 3), note(3), skipped(4, 6), progress, skipped(7, 9)];
        for page in 1..=log.len() {
            let mut quiet = Quiet::default();
            let mut sent: Vec<_> = log.chunks(page).flat_map(|page| quiet.take(page.to_vec())).collect();
            assert!(quiet.holds());
            sent.extend(quiet.flush());
            assert_eq!(sent, expected, "pages of {page}");
            assert!(!quiet.holds() && quiet.flush().is_none());
        }
    }

    #[test]
    fn a_run_that_was_flushed_goes_on_as_another() {
        let mut quiet = Quiet::default();
        assert_eq!(quiet.take(vec![output(1), output(2)]), []);
        assert_eq!(quiet.flush(), Some(skipped(1, 3)));
        assert_eq!(quiet.take(vec![output(3), note(4)]), [skipped(3, 4), note(4)]);
        assert!(!quiet.holds());
    }
}
