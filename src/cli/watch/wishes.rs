//! What the user wants while tasks are watched, and carrying it out.

use ado_proto::record::{Answer, Desired};
use ado_proto::request::GiveAnswer;
use ado_proto::{AskId, TaskId};
use futures_util::future::BoxFuture;

use super::super::error::Error;
use super::super::signals::{Signal, Signals};
use super::OnInterrupt;
use crate::client::{self, Client};

/// Something the loop must know of.
#[derive(Debug)]
pub(super) enum Heard {
    /// Leave.
    Leave,
    /// Ask what is wanted.
    Ask,
    /// Stop until the shell wants us to go on.
    Suspend,
    /// The tasks are being cancelled.
    Cancelling,
    /// What was asked of the controller failed.
    Failed(client::Error),
}

/// Signals, and what was asked of the controller because of them.
pub(super) struct Wishes<'a> {
    client: Client,
    /// The tasks, as the controller knows them.
    reference: String,
    on: OnInterrupt,
    signals: &'a mut Signals,
    /// At most one at a time: a later wish replaces one that was not answered yet.
    asked: Option<BoxFuture<'static, Result<(), client::Error>>>,
}

impl<'a> Wishes<'a> {
    pub(super) fn new(client: Client, reference: String, on: OnInterrupt, signals: &'a mut Signals) -> Self {
        Self { client, reference, on, signals, asked: None }
    }

    /// Hears the terminal's other keys too, from now on.
    pub(super) fn catch_keys(&mut self) -> Result<(), Error> {
        self.signals.catch_keys()
    }

    /// The next thing to know of. Cancel safe.
    pub(super) async fn hear(&mut self) -> Heard {
        loop {
            let answered = async {
                match &mut self.asked {
                    Some(asked) => asked.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                signal = self.signals.next() => return self.meant(signal),
                result = answered => {
                    self.asked = None;
                    if let Err(error) = result {
                        return Heard::Failed(error);
                    }
                }
            }
        }
    }

    /// Asks the controller for another state of the tasks.
    pub(super) fn want(&mut self, desired: Desired) {
        let (client, reference) = (self.client.clone(), self.reference.clone());
        self.asked = Some(Box::pin(async move { client.set_desired(&reference, desired, false).await.map(drop) }));
    }

    /// Whether somebody is there who can be asked.
    pub(super) fn asks(&self) -> bool {
        self.on == OnInterrupt::Ask
    }

    /// Answers a question of a task.
    pub(super) fn answer(&mut self, task: TaskId, ask: AskId, choice: &str) {
        let answer = Answer { choice: Some(choice.into()), text: None };
        let given = GiveAnswer { reference: task.to_string(), ask: Some(ask), answer };
        let client = self.client.clone();
        self.asked = Some(Box::pin(async move { client.answer(&given).await.map(drop) }));
    }

    fn meant(&mut self, signal: Signal) -> Heard {
        match (signal, self.on) {
            (Signal::Suspend, _) => Heard::Suspend,
            (Signal::Interrupt, OnInterrupt::Ask) => Heard::Ask,
            (Signal::Interrupt, OnInterrupt::Cancel) => {
                self.on = OnInterrupt::Detach;
                self.want(Desired::Cancelled);
                Heard::Cancelling
            }
            _ => Heard::Leave,
        }
    }
}
