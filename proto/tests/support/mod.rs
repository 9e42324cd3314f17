//! Every payload of the protocol as a [`Case`], with values made from a string of entropy.

mod entropy;

use ado_proto::record::{self, Body};
use ado_proto::request::{self, ErrorReply, Header, Request};
use ado_proto::session::{self, FollowItem, FromAttempt, FromWorker, ToAttempt, ToWorker};
use ado_proto::{DecodeError, RequestId};
use bytes::Bytes;
use uuid::Uuid;

pub(crate) use entropy::make;

/// A value's encoded form, and what `Debug` says of it.
pub(crate) type Seen = (Bytes, String);

type Make = Box<dyn Fn(&[u8]) -> Seen>;
type Read = Box<dyn Fn(&Bytes) -> Result<Seen, DecodeError>>;

/// One released payload.
pub(crate) struct Case {
    /// `Body.Submitted`, `request.Hello`, `response.Hello`.
    pub(crate) name: String,
    pub(crate) kind: u16,
    pub(crate) version: u8,
    /// Whether its last part is bytes without a length: a shorter encoding is then another value, not an error.
    pub(crate) open_ended: bool,
    /// Makes a value.
    pub(crate) make: Make,
    /// Decodes, and encodes again.
    pub(crate) read: Read,
    /// Decodes only.
    pub(crate) decodes: Box<dyn Fn(&Bytes) -> bool>,
}

macro_rules! payload_cases {
    ($cases:ident: $($enum:ident { $($variant:ident = $make:expr),+ $(,)? })+) => {$($({
        let made = |entropy: &[u8]| -> $enum { ($make)(entropy).into() };
        let (kind, version) = made(&[]).kind();
        let encode = |value: &$enum| {
            let mut out = Vec::new();
            value.encode_body(&mut out);
            (Bytes::from(out), format!("{value:?}"))
        };
        $cases.push(Case {
            name: concat!(stringify!($enum), ".", stringify!($variant)).into(),
            kind,
            version,
            open_ended: matches!(stringify!($variant), "Output" | "Records"),
            make: Box::new(move |entropy| encode(&made(entropy))),
            read: Box::new(move |bytes| {
                let value = $enum::decode_body(kind, version, bytes)?;
                assert!(!matches!(value, $enum::Unknown { .. }));
                Ok(encode(&value))
            }),
            decodes: Box::new(move |bytes| $enum::decode_body(kind, version, bytes).is_ok()),
        });
    })+)+};
}

/// Every payload this build knows.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    payload_cases! { cases:
        Body {
            Submitted = make::<record::Submitted>,
            Assigned = make::<record::Assigned>,
            Started = make::<record::Started>,
            Exited = make::<record::Exited>,
            DesiredChanged = make::<record::DesiredChanged>,
            Paused = make::<record::Paused>,
            Resumed = make::<record::Resumed>,
            WorkerLost = make::<record::WorkerLost>,
            Requeued = make::<record::Requeued>,
            Ended = make::<record::Ended>,
            Truncated = make::<record::Truncated>,
            Note = make::<record::Note>,
            Checkpointed = make::<record::Checkpointed>,
            Skipped = make::<record::Skipped>,
            Asked = make::<record::Asked>,
            Answered = make::<record::Answered>,
            AskClosed = make::<record::AskClosed>,
            Used = make::<record::Used>,
            Expired = make::<record::Expired>,
            Retries = make::<record::Retries>,
            Progress = make::<record::Progress>,
            Output = |entropy: &[u8]| {
                let (stream, position, data) = make::<(record::Stream, u64, Vec<u8>)>(entropy);
                record::Output { stream, position, data: data.into() }
            },
        }
        FromWorker {
            Heartbeat = make::<session::Heartbeat>,
            Draining = make::<session::Draining>,
        }
        ToWorker {
            HeartbeatAnswer = make::<session::HeartbeatAnswer>,
            Assign = make::<session::Assignment>,
            Want = make::<session::Want>,
            Answers = make::<session::Answers>,
            Controllers = make::<session::Controllers>,
            Wish = make::<request::WorkerWant>,
            Bridge = make::<session::Bridge>,
        }
        FromAttempt { Records = |entropy: &[u8]| session::Records(make::<Vec<u8>>(entropy).into()) }
        ToAttempt {
            Acknowledged = make::<session::Acknowledged>,
            Stale = make::<session::Stale>,
        }
        FollowItem {
            Records = |entropy: &[u8]| session::Records(make::<Vec<u8>>(entropy).into()),
            End = make::<session::End>,
            LogReset = make::<session::LogReset>,
            Idle = make::<session::Idle>,
            Detached = make::<session::Detached>,
        }
    }
    requests(&mut cases);
    cases
}

fn requests(cases: &mut Vec<Case>) {
    request::<request::Hello>(cases);
    request::<request::Enrol>(cases);
    request::<request::Renew>(cases);
    request::<request::CreateToken>(cases);
    request::<request::ListTokens>(cases);
    request::<request::RevokeToken>(cases);
    request::<request::RevokeIdentity>(cases);
    request::<request::Submit>(cases);
    request::<request::GetTasks>(cases);
    request::<request::ListTasks>(cases);
    request::<request::SetDesired>(cases);
    request::<request::RetryDead>(cases);
    request::<request::PurgeDead>(cases);
    request::<request::GiveAnswer>(cases);
    request::<request::Follow>(cases);
    request::<request::Detach>(cases);
    request::<request::ListWorkers>(cases);
    request::<request::SetWorker>(cases);
    request::<request::ListEvents>(cases);
    request::<request::ListAudit>(cases);
    request::<request::ListControllers>(cases);
    request::<request::SetSecret>(cases);
    request::<request::ListSecrets>(cases);
    request::<request::RemoveSecret>(cases);
    request::<request::WorkerSession>(cases);
    request::<request::TaskOutput>(cases);
    request::<request::PutBlob>(cases);
    request::<request::GetBlob>(cases);
}

fn request<R: Request + std::fmt::Debug>(cases: &mut Vec<Case>)
where
    R::Response: std::fmt::Debug,
{
    let read = |bytes: &Bytes| {
        let (header, body) = request::decode_header(bytes)?;
        Ok::<_, DecodeError>((header, request::decode_body::<R>(&body)?))
    };
    let encode = |header: &Header, request: &R| {
        (request::encode_request(header, request).into(), format!("{header:?} {request:?}"))
    };
    cases.push(Case {
        name: format!("request.{}", R::NAME),
        kind: R::KIND,
        version: R::VERSION,
        open_ended: false,
        make: Box::new(move |entropy| {
            let id = entropy.first().is_some_and(|byte| byte % 2 == 1).then(|| RequestId(Uuid::from_u128(1 << 100)));
            let header = Header { minor: 1, kind: R::KIND, version: R::VERSION, id, namespace: None };
            encode(&header, &make::<R>(entropy))
        }),
        read: Box::new(move |bytes| read(bytes).map(|(header, request)| encode(&header, &request))),
        decodes: Box::new(move |bytes| read(bytes).is_ok()),
    });
    type Answer<R> = Result<<R as Request>::Response, ErrorReply>;
    let encode = |answer: &Answer<R>| (request::encode_response(answer).into(), format!("{answer:?}"));
    cases.push(Case {
        name: format!("response.{}", R::NAME),
        kind: R::KIND,
        version: R::VERSION,
        open_ended: false,
        make: Box::new(move |entropy| encode(&make::<Answer<R>>(entropy))),
        read: Box::new(move |bytes| request::decode_response::<R>(bytes).map(|answer| encode(&answer))),
        decodes: Box::new(|bytes| request::decode_response::<R>(bytes).is_ok()),
    });
}

/// What the crate itself says it knows, by the names of [`Case::name`].
pub(crate) fn known() -> Vec<(String, u16, u8)> {
    let enums = [
        ("Body", Body::KNOWN),
        ("FromWorker", FromWorker::KNOWN),
        ("ToWorker", ToWorker::KNOWN),
        ("FromAttempt", FromAttempt::KNOWN),
        ("ToAttempt", ToAttempt::KNOWN),
        ("FollowItem", FollowItem::KNOWN),
    ];
    let payloads = enums.into_iter().flat_map(|(name, known)| {
        known.iter().map(move |(kind, version, variant)| (format!("{name}.{variant}"), *kind, *version))
    });
    let requests = request::KNOWN.iter().flat_map(|(kind, version, name, _)| {
        ["request", "response"].map(|side| (format!("{side}.{name}"), *kind, *version))
    });
    payloads.chain(requests).collect()
}
