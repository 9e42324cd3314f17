//! What a task and its worker say to each other, on the Unix socket that the variable [`SOCKET`] names: one JSON object a
//! line, and one line in answer to each. Any language can speak it; `ado task` does.
//!
//! ```text
//! {"progress":{"percent":40,"message":"compiling"}}   ->   {"ok":{}}
//! {"checkpoint":{"data":{"page":7}}}                  ->   {"ok":{"checkpointId":"0199..."}}   once it is durable
//! {"checkpoint":{"data":{},"workspace":true}}         ->   the same, with all that is in the task's folder
//! {"ask":{"message":"Deploy?","options":["yes","no"]}} ->   {"ok":{"answer":"yes"}}           once somebody has answered
//! {"log":{"message":"cache is cold"}}                 ->   {"error":{"message":"..."}}
//! {"hopeless":{"message":"the input is no JSON"}}     ->   {"ok":{}}                           and then exit
//! {"unavailable":{"message":"quota","retryAfterMs":60000}}
//! ```

use serde::{Deserialize, Serialize};

use crate::CheckpointId;

/// Variable of a task's environment: path of its socket.
pub const SOCKET: &str = "ADO_SOCKET";
/// Variable of a task's environment: data of the checkpoint it goes on from, as JSON. Missing when it begins anew.
pub const CHECKPOINT: &str = "ADO_CHECKPOINT";
/// Longest line, bytes: a checkpoint of [`crate::record::MAX_CHECKPOINT`] with every character escaped.
pub const MAX_LINE: usize = 6 * crate::record::MAX_CHECKPOINT + 1024;

/// What a task says. `data` is any JSON value; the type is the caller's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Say<Json> {
    /// How far it is. What is left out stays as it was.
    Progress {
        /// 0 to 100.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        percent: Option<u8>,
        /// What it does now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// It can go on from here. Answered once that is durable.
    Checkpoint {
        /// Comes back in [`CHECKPOINT`].
        data: Json,
        /// The task's folder is a part of it. Once it was, it is of all that follow.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        workspace: bool,
    },
    /// It asks somebody, and waits. Answered once somebody has.
    #[serde(rename_all = "camelCase")]
    Ask {
        /// What: one line.
        message: String,
        /// What can be answered; none: words.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        options: Vec<String>,
        /// What is answered when nobody does in time: one of the options.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        default: Option<String>,
        /// How long is waited for somebody, milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wait_ms: Option<u64>,
    },
    /// Something people should know.
    Log {
        /// One line.
        message: String,
    },
    /// It is about to exit, has failed, and would fail again in the same way.
    Hopeless {
        /// Why: one line.
        message: String,
    },
    /// It is about to exit, since what it needs is not to be had: it should be tried again later, at no cost to it.
    #[serde(rename_all = "camelCase")]
    Unavailable {
        /// What, and why: one line.
        message: String,
        /// How long it is of no use to try again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}

/// What its worker answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Taken.
    #[serde(rename_all = "camelCase")]
    Ok {
        /// Of a checkpoint.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        checkpoint_id: Option<CheckpointId>,
        /// Of somebody who was asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answer: Option<String>,
    },
    /// Not taken.
    Error {
        /// What was wrong, with which value.
        message: String,
    },
}
