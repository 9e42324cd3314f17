//! What an attempt has to say and the controller has not yet acknowledged: bodies in, frames out.
//!
//! Owns: seqs, what has been sent on the current stream, what may be sent. Must never know: streams, processes, the clock.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ado_proto::record::{Body, MAX_OUTPUT};
use ado_proto::session::Records;
use ado_proto::{Epoch, Offset, Origin, Record, Seq, Timestamp};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::spool::{Full, Spool};

/// Most bytes of records in one frame, if it holds more than one.
pub const FRAME: usize = 256 * 1024;
/// Most bytes sent and not acknowledged: a slow commit is waited for here. A hundred megabytes a second at 40 ms.
pub const WINDOW: usize = 4 * 1024 * 1024;

/// How long a full memory waits for an acknowledgement before the disk is used: a commit is faster, and an agent is not held
/// up by a network that is away for longer.
const STALLED_AFTER: Duration = Duration::from_millis(200);

/// The controller counts otherwise than we do: its log is not the one we wrote into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the controller expects record {theirs}, we hold {first} to {next}")]
pub struct OutOfStep {
    /// What it expects.
    pub theirs: Seq,
    /// The oldest we still have.
    pub first: Seq,
    /// The next we will make.
    pub next: Seq,
}

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    epoch: Epoch,
    spool: Spool,
    /// The next seq to send.
    next_to_send: Seq,
    /// Frames sent on this stream and not acknowledged: the seq after each, and its bytes.
    in_flight: VecDeque<(Seq, usize)>,
    in_flight_bytes: usize,
    connected: bool,
    /// Records may go to the disk although somebody takes them: nothing was acknowledged for a while.
    stalled: bool,
    closed: bool,
}

impl Outbox {
    /// For the records of one epoch.
    pub fn new(epoch: Epoch, spool: Spool) -> Self {
        Self {
            epoch,
            spool,
            next_to_send: Seq(0),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            connected: false,
            stalled: false,
            closed: false,
        }
    }

    /// The seq of what is added next.
    pub fn next_seq(&self) -> Seq {
        self.spool.next_seq()
    }

    /// The first seq that is not known to be in the log.
    pub fn durable(&self) -> Seq {
        self.spool.first_seq()
    }

    /// Adds what happened, under the next seq.
    ///
    /// # Errors
    /// [`Full`]; nothing has changed then.
    pub fn push(&mut self, body: &Body, time: Timestamp) -> Result<(), Full> {
        debug_assert!(!matches!(body, Body::Output(output) if output.data.len() > MAX_OUTPUT));
        let origin = Origin::Worker { epoch: self.epoch, seq: self.spool.next_seq() };
        let record = Record { offset: Offset(0), origin, time, body: body.clone() };
        // A flood is slowed down to what is taken: the disk is for what nobody takes.
        if self.connected && !self.stalled && self.spool.would_spill(record.weight()) {
            return Err(Full);
        }
        let mut bytes = Vec::with_capacity(record.weight());
        record.encode(&mut bytes);
        self.spool.push(bytes.into())
    }

    /// Nothing was acknowledged for a while: until something is, records may go to the disk.
    pub fn stalled(&mut self) {
        self.stalled = true;
    }

    /// There will be no more.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Everything there will ever be is in the log.
    pub fn is_complete(&self) -> bool {
        self.closed && self.unacknowledged() == 0
    }

    /// Records that are not known to be in the log.
    pub fn unacknowledged(&self) -> u64 {
        self.spool.next_seq().0 - self.spool.first_seq().0
    }

    /// There is a stream, on which the controller expects `next` first.
    ///
    /// # Errors
    /// [`OutOfStep`] when that is not to be had.
    pub fn connected(&mut self, next: Seq) -> Result<(), OutOfStep> {
        self.acknowledge_spool(next)?;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.next_to_send = next;
        self.connected = true;
        Ok(())
    }

    /// The stream is gone; what was under way on it may have arrived or not.
    pub fn disconnected(&mut self) {
        self.connected = false;
    }

    /// Everything before `next` is in the log. An older acknowledgement changes nothing.
    ///
    /// # Errors
    /// [`OutOfStep`] when it speaks of records we have not sent.
    pub fn acknowledged(&mut self, next: Seq) -> Result<(), OutOfStep> {
        if next > self.next_to_send {
            return Err(self.out_of_step(next));
        }
        if next > self.spool.first_seq() {
            self.stalled = false;
            self.acknowledge_spool(next)?;
        }
        while let Some((end, bytes)) = self.in_flight.front()
            && *end <= next
        {
            self.in_flight_bytes -= bytes;
            self.in_flight.pop_front();
        }
        Ok(())
    }

    /// The next frame to send; `None` while there is no stream, nothing to say, or enough under way.
    ///
    /// # Errors
    /// The spool file's: records are lost for good, and with them the attempt.
    pub fn next_frame(&mut self) -> io::Result<Option<Records>> {
        if !self.connected || self.in_flight_bytes >= WINDOW || self.next_to_send == self.spool.next_seq() {
            return Ok(None);
        }
        let (bytes, next) = self.spool.peek(self.next_to_send, FRAME)?;
        self.next_to_send = next;
        self.in_flight.push_back((next, bytes.len()));
        self.in_flight_bytes += bytes.len();
        Ok(Some(Records(bytes)))
    }

    fn acknowledge_spool(&mut self, next: Seq) -> Result<(), OutOfStep> {
        if next < self.spool.first_seq() || next > self.spool.next_seq() {
            return Err(self.out_of_step(next));
        }
        self.spool.acknowledge(next);
        Ok(())
    }

    fn out_of_step(&self, theirs: Seq) -> OutOfStep {
        OutOfStep { theirs, first: self.spool.first_seq(), next: self.spool.next_seq() }
    }
}

/// An outbox between the one that fills it and the one that sends.
#[derive(Debug)]
pub struct SharedOutbox {
    outbox: Mutex<Outbox>,
    /// Something may be sent that could not be before. One waits.
    more: Notify,
    /// There may be room again. One waits.
    room: Notify,
    /// See [`Outbox::durable`].
    durable: watch::Sender<Seq>,
}

impl SharedOutbox {
    /// Shares an outbox.
    pub fn new(outbox: Outbox) -> Self {
        let durable = watch::Sender::new(outbox.durable());
        Self { outbox: Mutex::new(outbox), more: Notify::new(), room: Notify::new(), durable }
    }

    /// Pushes from the front of `bodies` while there is room.
    pub fn push_all(&self, bodies: &mut VecDeque<Body>, time: Timestamp) {
        let mut outbox = self.lock();
        let before = bodies.len();
        while let Some(body) = bodies.front()
            && outbox.push(body, time).is_ok()
        {
            bodies.pop_front();
        }
        drop(outbox);
        if bodies.len() < before {
            self.more.notify_one();
        }
    }

    /// See [`Outbox::close`].
    pub fn close(&self) {
        self.lock().close();
        self.more.notify_one();
    }

    /// See [`Outbox::connected`].
    ///
    /// # Errors
    /// [`OutOfStep`].
    pub fn connected(&self, next: Seq) -> Result<(), OutOfStep> {
        self.heard(|outbox| outbox.connected(next))
    }

    /// See [`Outbox::disconnected`].
    pub fn disconnected(&self) {
        self.lock().disconnected();
    }

    /// See [`Outbox::acknowledged`].
    ///
    /// # Errors
    /// [`OutOfStep`].
    pub fn acknowledged(&self, next: Seq) -> Result<(), OutOfStep> {
        self.heard(|outbox| outbox.acknowledged(next))
    }

    /// See [`Outbox::next_seq`].
    pub fn next_seq(&self) -> Seq {
        self.lock().next_seq()
    }

    /// See [`Outbox::durable`].
    pub fn durable(&self) -> watch::Receiver<Seq> {
        self.durable.subscribe()
    }

    /// See [`Outbox::is_complete`].
    pub fn is_complete(&self) -> bool {
        self.lock().is_complete()
    }

    /// See [`Outbox::unacknowledged`].
    pub fn unacknowledged(&self) -> u64 {
        self.lock().unacknowledged()
    }

    /// Waits for the next frame to send; `None` when everything is in the log and there will be no more. Cancel safe; one
    /// waits at a time.
    ///
    /// # Errors
    /// See [`Outbox::next_frame`].
    pub async fn next_frame(&self) -> io::Result<Option<Records>> {
        loop {
            {
                let mut outbox = self.lock();
                if outbox.is_complete() {
                    return Ok(None);
                }
                if let Some(frame) = outbox.next_frame()? {
                    return Ok(Some(frame));
                }
            }
            self.more.notified().await;
        }
    }

    /// Waits until there may be room. One waits at a time.
    pub async fn room(&self) {
        tokio::select! {
            biased;
            () = self.room.notified() => {}
            () = sleep(STALLED_AFTER) => self.lock().stalled(),
        }
    }

    /// The controller has said how far the log is.
    fn heard(&self, hear: impl FnOnce(&mut Outbox) -> Result<(), OutOfStep>) -> Result<(), OutOfStep> {
        let mut outbox = self.lock();
        let result = hear(&mut outbox);
        let durable = outbox.durable();
        drop(outbox);
        self.durable.send_if_modified(|known| std::mem::replace(known, durable.max(*known)) < durable);
        self.more.notify_one();
        self.room.notify_one();
        result
    }

    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Output, Stream};
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn outbox() -> (Outbox, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Outbox::new(Epoch(3), Spool::new(dir.path().join("spool"), 2_000, 1_000_000)), dir)
    }

    fn output(position: u64, size: usize) -> Body {
        Output { stream: Stream::Stdout, position, data: Bytes::from(vec![b'x'; size]) }.into()
    }

    fn seqs(frame: &Records) -> Vec<u64> {
        let seq = |record: Record| match record.origin {
            Origin::Worker { epoch: Epoch(3), seq } => seq.0,
            other => panic!("{other:?}"),
        };
        frame.decode().unwrap().into_iter().map(seq).collect()
    }

    #[test]
    fn nothing_is_sent_before_there_is_a_stream() {
        let (mut outbox, _dir) = outbox();
        outbox.push(&output(0, 1), Timestamp(0)).unwrap();
        assert_eq!(outbox.next_frame().unwrap(), None);
        outbox.connected(Seq(0)).unwrap();
        assert_eq!(seqs(&outbox.next_frame().unwrap().unwrap()), [0]);
        assert_eq!(outbox.next_frame().unwrap(), None);
    }

    #[test]
    fn a_new_stream_goes_on_where_the_log_ends() {
        let (mut outbox, _dir) = outbox();
        for position in 0..5 {
            outbox.push(&output(position, 1), Timestamp(0)).unwrap();
        }
        outbox.connected(Seq(0)).unwrap();
        assert_eq!(seqs(&outbox.next_frame().unwrap().unwrap()), [0, 1, 2, 3, 4]);
        outbox.disconnected();
        outbox.push(&output(5, 1), Timestamp(0)).unwrap();
        outbox.connected(Seq(3)).unwrap();
        assert_eq!(seqs(&outbox.next_frame().unwrap().unwrap()), [3, 4, 5]);
        outbox.close();
        assert!(!outbox.is_complete());
        outbox.acknowledged(Seq(6)).unwrap();
        assert!(outbox.is_complete());
    }

    #[test]
    fn a_log_that_is_not_ours_is_noticed() {
        let (mut outbox, _dir) = outbox();
        outbox.push(&output(0, 1), Timestamp(0)).unwrap();
        assert!(outbox.connected(Seq(2)).is_err());
        outbox.connected(Seq(0)).unwrap();
        assert!(outbox.acknowledged(Seq(1)).is_err(), "not sent yet");
        outbox.next_frame().unwrap();
        outbox.acknowledged(Seq(1)).unwrap();
        assert!(outbox.connected(Seq(0)).is_err(), "it has forgotten what it had");
    }

    #[test]
    fn the_disk_is_for_what_nobody_takes() {
        let (mut outbox, _dir) = outbox();
        let fill = |outbox: &mut Outbox| {
            let mut taken = 0;
            while taken < 100 && outbox.push(&output(0, 100), Timestamp(0)).is_ok() {
                taken += 1;
            }
            taken
        };
        outbox.connected(Seq(0)).unwrap();
        let in_memory = fill(&mut outbox);
        assert!((10..20).contains(&in_memory), "{in_memory}");
        while outbox.next_frame().unwrap().is_some() {}
        outbox.acknowledged(Seq(in_memory / 2)).unwrap();
        assert!((1..20).contains(&fill(&mut outbox)), "as much as there is room for");
        outbox.stalled();
        assert_eq!(fill(&mut outbox), 100, "nothing is acknowledged");
        while outbox.next_frame().unwrap().is_some() {}
        let all = outbox.next_seq();
        outbox.acknowledged(all).unwrap();
        assert!(fill(&mut outbox) < 20, "it is again");
        outbox.disconnected();
        assert_eq!(fill(&mut outbox), 100, "nobody is there");
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = Outbox::new(Epoch(3), Spool::new(dir.path().join("spool"), 4 * WINDOW, 0));
        let mut position = 0;
        while outbox.push(&output(position, MAX_OUTPUT), Timestamp(0)).is_ok() {
            position += MAX_OUTPUT as u64;
        }
        outbox.connected(Seq(0)).unwrap();
        let mut sent = 0;
        let mut last = 0;
        while let Some(frame) = outbox.next_frame().unwrap() {
            assert!(frame.0.len() <= FRAME);
            sent += frame.0.len();
            last = *seqs(&frame).last().unwrap();
        }
        assert!((WINDOW..WINDOW + FRAME).contains(&sent), "{sent}");
        outbox.acknowledged(Seq(last + 1)).unwrap();
        assert!(outbox.next_frame().unwrap().is_some());
    }

    #[derive(Debug, Clone)]
    enum Event {
        Push(usize),
        Send,
        /// The log takes what has arrived; whether the answer arrives.
        Commit(bool),
        Break,
    }

    proptest! {
        /// Whatever breaks when, the log gets every record once, in order.
        #[test]
        fn the_log_is_dense(events in prop::collection::vec(prop_oneof![
            3 => (1usize..400).prop_map(Event::Push),
            3 => Just(Event::Send),
            2 => any::<bool>().prop_map(Event::Commit),
            1 => Just(Event::Break),
        ], 1..200)) {
            let (mut outbox, _dir) = outbox();
            let mut log: Vec<u64> = Vec::new();
            let mut arrived: Vec<u64> = Vec::new();
            let mut pushed = 0;
            outbox.connected(Seq(0)).unwrap();
            let end = [Event::Break, Event::Send, Event::Commit(true)];
            for event in events.into_iter().chain(std::iter::repeat_n(end, 200).flatten()) {
                match event {
                    Event::Push(size) => pushed += u64::from(outbox.push(&output(0, size), Timestamp(0)).is_ok()),
                    Event::Send => {
                        if let Some(frame) = outbox.next_frame().unwrap() {
                            arrived.extend(seqs(&frame));
                        }
                    }
                    Event::Commit(answered) => {
                        prop_assert!(arrived.first().is_none_or(|seq| *seq == log.len() as u64));
                        log.append(&mut arrived);
                        if answered {
                            outbox.acknowledged(Seq(log.len() as u64)).unwrap();
                        }
                    }
                    Event::Break => {
                        arrived.clear();
                        outbox.disconnected();
                        prop_assert_eq!(outbox.next_frame().unwrap(), None);
                        outbox.connected(Seq(log.len() as u64)).unwrap();
                    }
                }
            }
            prop_assert_eq!(log, (0..pushed).collect::<Vec<_>>());
            outbox.close();
            prop_assert!(outbox.is_complete());
        }
    }
}
