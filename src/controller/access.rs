//! Who may do what: one table of roles and requests, one rule for namespaces, one for owners.
//!
//! A namespace is read by everybody who belongs to it and may read at all. What somebody has submitted is changed by
//! themselves and by administrators. What is in another namespace does not exist.

use ado_proto::request::{
    CreateToken, Detach, Enrol, ErrorCode, ErrorReply, Follow, GetBlob, GetTasks, GiveAnswer, Header, Hello, KNOWN,
    ListAudit, ListControllers, ListEvents, ListSecrets, ListTasks, ListTokens, ListWorkers, PurgeDead, PutBlob,
    RemoveSecret, Renew, Request, RetryDead, RevokeIdentity, RevokeToken, Safety, SetDesired, SetSecret, SetWorker,
    Submit, TaskOutput, WorkerSession,
};
use ado_proto::{Audience, Namespace, Principal, Role, ids};

use crate::store::Row;

use Reach::{None as Nothing, Own, Seen};

/// Which tasks, or secrets, a request may be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// It names none, or those that the caller holds as a worker: the lease decides.
    None,
    /// Those of the namespaces that the caller may see.
    Seen,
    /// Of those, the ones that the caller has submitted; all, for administrators.
    Own,
}

/// A row of the table: a request, who may ask it, and about which tasks.
type Rule = (u16, &'static [Role], Reach);

const READERS: &[Role] = &[Role::Admin, Role::User, Role::Viewer];

/// The table. A pair that is not here is denied. [`Enrol`] is not here: strangers ask it, and nothing else.
const TABLE: &[Rule] = &[
    (Hello::KIND, &[Role::Admin, Role::User, Role::Viewer, Role::Worker, Role::Controller], Nothing),
    (Renew::KIND, &[Role::Admin, Role::User, Role::Viewer, Role::Worker], Nothing),
    (CreateToken::KIND, &[Role::Admin], Nothing),
    (ListTokens::KIND, &[Role::Admin], Nothing),
    (RevokeToken::KIND, &[Role::Admin], Nothing),
    (RevokeIdentity::KIND, &[Role::Admin], Nothing),
    (Submit::KIND, &[Role::Admin, Role::User], Nothing),
    (GetTasks::KIND, READERS, Seen),
    (ListTasks::KIND, READERS, Seen),
    (SetDesired::KIND, &[Role::Admin, Role::User], Own),
    (RetryDead::KIND, &[Role::Admin, Role::User], Own),
    (PurgeDead::KIND, &[Role::Admin, Role::User], Own),
    (GiveAnswer::KIND, &[Role::Admin, Role::User], Own),
    (Follow::KIND, READERS, Seen),
    // Everybody may end viewers of their own; others' are for administrators, which the request itself checks.
    (Detach::KIND, READERS, Seen),
    (ListWorkers::KIND, READERS, Seen),
    (SetWorker::KIND, &[Role::Admin], Nothing),
    (ListEvents::KIND, READERS, Nothing),
    (ListAudit::KIND, &[Role::Admin], Nothing),
    // Everybody is told where they are anyway.
    (ListControllers::KIND, READERS, Nothing),
    (SetSecret::KIND, &[Role::Admin, Role::User], Own),
    (ListSecrets::KIND, &[Role::Admin, Role::User], Nothing),
    (RemoveSecret::KIND, &[Role::Admin, Role::User], Own),
    (WorkerSession::KIND, &[Role::Worker], Nothing),
    (TaskOutput::KIND, &[Role::Worker], Nothing),
    (PutBlob::KIND, &[Role::Worker], Nothing),
    (GetBlob::KIND, &[Role::Worker], Nothing),
];

// A request without a row does not compile.
const _: () = assert!(every_request_has_one_row(), "a request has no row in the table of who may ask it, or two");

const fn every_request_has_one_row() -> bool {
    let mut known = 0;
    while known < KNOWN.len() {
        let expected = if KNOWN[known].0 == Enrol::KIND { 0 } else { 1 };
        if rows_of(KNOWN[known].0) != expected {
            return false;
        }
        known += 1;
    }
    TABLE.len() + 1 == KNOWN.len()
}

const fn rows_of(kind: u16) -> usize {
    let (mut row, mut count) = (0, 0);
    while row < TABLE.len() {
        if TABLE[row].0 == kind {
            count += 1;
        }
        row += 1;
    }
    count
}

/// Proof that a peer may make a request, and where.
pub(super) struct Access {
    /// What it may see.
    pub(super) audience: Audience,
    /// Where it makes things.
    pub(super) namespace: Namespace,
    /// For the audit log and for idempotency keys: `ado://…`.
    pub(super) principal: String,
    /// For logs and people: `role/name`.
    pub(super) owner: String,
    /// Whose tasks it may be about, beside the audience.
    reach: Reach,
}

/// Checks a request's header against the table.
///
/// # Errors
/// `Denied`, the same whether the request or the namespace is the reason. `Invalid` when the namespace cannot be one.
pub(super) fn check(principal: &Principal, header: &Header) -> Result<Access, ErrorReply> {
    let own = &principal.namespace;
    let is_admin = principal.role == Role::Admin;
    let rule = TABLE.iter().find(|(kind, roles, _)| *kind == header.kind && roles.contains(&principal.role));
    let elsewhere = !is_admin && header.namespace.as_ref().is_some_and(|wanted| wanted != own);
    let Some((_, _, reach)) = rule.filter(|_| !elsewhere) else {
        let message = format!("{principal} may not do that");
        return Err(
            ErrorReply::new(ErrorCode::Denied, message).hint("ask an administrator for a token of another role")
        );
    };
    if let Some(Namespace(name)) = header.namespace.as_ref().filter(|namespace| !ids::is_name(&namespace.0)) {
        // It would be written into logs.
        let message = format!("`{:.64}` is not a name: 1 to 63 of a-z A-Z 0-9 . _ @ -", name);
        return Err(ErrorReply::new(ErrorCode::Invalid, message));
    }
    let audience = match &header.namespace {
        Some(wanted) => Audience::Namespace(wanted.clone()),
        None if is_admin => Audience::Everywhere,
        None => Audience::Namespace(own.clone()),
    };
    Ok(Access {
        audience,
        namespace: header.namespace.clone().unwrap_or_else(|| own.clone()),
        principal: principal.to_string(),
        owner: format!("{}/{}", principal.role, principal.name),
        reach: if is_admin && *reach == Own { Seen } else { *reach },
    })
}

impl Access {
    /// Whose things only it may be about; `None`: anybody's.
    pub(super) fn only(&self) -> Option<&str> {
        (self.reach != Seen).then_some(&self.owner)
    }

    /// Whether the request may be about a task that the caller may see.
    pub(super) fn reaches(&self, row: &Row) -> bool {
        self.reach == Seen || self.reach == Own && row.task.owner == self.owner
    }

    /// Those of the tasks found, all of which the caller may see, that the request may be about. What is one's own comes
    /// before what has the same name and is somebody else's.
    ///
    /// # Errors
    /// `Denied` when there are some, and it may be about none of them.
    pub(super) fn permitted(&self, mut found: Vec<Row>) -> Result<Vec<Row>, ErrorReply> {
        let Some(first) = found.first() else { return Ok(found) };
        let name = first.task.group.map_or_else(|| first.task.id.short(), |member| member.id.short());
        let message = match self.reach {
            Seen => return Ok(found),
            Nothing => "this request is about no task".to_owned(),
            Own => format!("{name} belongs to {}: only they and administrators may change it", first.task.owner),
        };
        found.retain(|row| self.reaches(row));
        if found.is_empty() { Err(ErrorReply::new(ErrorCode::Denied, message)) } else { Ok(found) }
    }
}

/// The name of a request.
pub(super) fn name(kind: u16) -> &'static str {
    KNOWN.iter().find(|known| known.0 == kind).map_or("unknown", |known| known.2)
}

/// Whether a refusal belongs into the audit log: nobody may be asked for what is denied, and of what changes something all
/// is written down but what failed for no fault of the caller's.
pub(super) fn is_audited(kind: u16, refusal: &ErrorReply) -> bool {
    let is = |codes: &[ErrorCode]| codes.iter().any(|code| refusal.is(*code));
    let changes = KNOWN.iter().any(|known| known.0 == kind && known.3 != Safety::Read);
    is(&[ErrorCode::Denied, ErrorCode::BadCertificate, ErrorCode::BadToken, ErrorCode::Stale])
        || changes && is(&[ErrorCode::NotFound, ErrorCode::Ambiguous, ErrorCode::Invalid, ErrorCode::Conflict])
}

#[cfg(test)]
mod tests {
    use ado_proto::TaskId;
    use ado_proto::Timestamp;
    use ado_proto::record::Submitted;
    use ado_proto::spec::{Input, TaskSpec};
    use uuid::Uuid;

    use super::*;
    use crate::task;

    const ROLES: [Role; 5] = [Role::Admin, Role::User, Role::Viewer, Role::Worker, Role::Controller];

    fn may(role: Role, kind: u16, namespace: Option<&str>) -> Result<Access, ErrorReply> {
        let principal = Principal { role, namespace: Namespace("home".into()), name: "ann".into() };
        let namespace = namespace.map(|name| Namespace(name.into()));
        check(&principal, &Header { minor: 1, kind, version: 1, id: None, namespace })
    }

    /// A task of `home`.
    fn of(owner: &str) -> Row {
        let submitted = Submitted {
            namespace: Namespace("home".into()),
            owner: owner.into(),
            name: None,
            group: None,
            spec: TaskSpec::new("noop", Input::Text(String::new())),
        };
        Row::new(task::submit(TaskId(Uuid::from_u128(7)), submitted, Timestamp(0)).task, None)
    }

    /// What a role gets that asks in a namespace: `.` for nothing; for requests that name no task `+`; else one letter for
    /// each task it may be about: its own, one of another owner. Tasks of other namespaces are not found.
    fn cell(role: Role, kind: u16, namespace: Option<&str>) -> String {
        let Ok(access) = may(role, kind, namespace) else { return ".".into() };
        if access.reach == Nothing {
            return "+".into();
        }
        let own = of(&format!("{role}/ann"));
        let other = of("user/bob");
        let letters = [("o", own), ("x", other)];
        letters
            .into_iter()
            .filter(|(_, row)| access.permitted(vec![row.clone()]).is_ok())
            .map(|(letter, _)| letter)
            .collect()
    }

    /// Every request, every role, in its own namespace | in another. Written out, so that a change of the table is made
    /// twice, on purpose.
    #[test]
    fn what_every_role_may_ask_where_and_about_whose_tasks() {
        let line = |(kind, _, name, _): &(u16, u8, &str, Safety)| {
            let of = |namespace| ROLES.map(|role| cell(role, *kind, namespace)).join(" ");
            assert_eq!(of(None), of(Some("home")), "a namespace that is one's own anyway");
            format!("{name} {} | {}", of(Some("home")), of(Some("away")))
        };
        let table: Vec<_> = KNOWN.iter().map(line).collect();
        let expected = [
            // name        admin user viewer worker controller
            "Hello + + + + + | + . . . .",
            "Enrol . . . . . | . . . . .",
            "Renew + + + + . | + . . . .",
            "CreateToken + . . . . | + . . . .",
            "ListTokens + . . . . | + . . . .",
            "RevokeToken + . . . . | + . . . .",
            "RevokeIdentity + . . . . | + . . . .",
            "Submit + + . . . | + . . . .",
            "GetTasks ox ox ox . . | ox . . . .",
            "ListTasks ox ox ox . . | ox . . . .",
            "SetDesired ox o . . . | ox . . . .",
            "Follow ox ox ox . . | ox . . . .",
            "Detach ox ox ox . . | ox . . . .",
            "RetryDead ox o . . . | ox . . . .",
            "PurgeDead ox o . . . | ox . . . .",
            "GiveAnswer ox o . . . | ox . . . .",
            "ListWorkers ox ox ox . . | ox . . . .",
            "SetWorker + . . . . | + . . . .",
            "ListEvents + + + . . | + . . . .",
            "ListAudit + . . . . | + . . . .",
            "ListControllers + + + . . | + . . . .",
            "SetSecret ox o . . . | ox . . . .",
            "ListSecrets + + . . . | + . . . .",
            "RemoveSecret ox o . . . | ox . . . .",
            "WorkerSession . . . + . | . . . . .",
            "TaskOutput . . . + . | . . . . .",
            "PutBlob . . . + . | . . . . .",
            "GetBlob . . . + . | . . . . .",
        ];
        assert_eq!(table, expected);
        assert!(ROLES.iter().all(|role| may(*role, 9999, None).is_err()), "what nobody knows");
    }

    #[test]
    fn only_administrators_leave_their_namespace() {
        let sees = |role, namespace| may(role, ListTasks::KIND, namespace).map(|access| access.audience).ok();
        let only = |name: &str| Some(Audience::Namespace(Namespace(name.into())));
        assert_eq!(sees(Role::User, None), only("home"));
        assert_eq!(sees(Role::User, Some("home")), only("home"));
        assert_eq!(sees(Role::User, Some("away")), None);
        assert_eq!(sees(Role::Admin, None), Some(Audience::Everywhere));
        assert_eq!(sees(Role::Admin, Some("away")), only("away"));
        let long = "n".repeat(300_000);
        assert!(may(Role::Admin, Submit::KIND, Some(&long)).is_err_and(|reply| reply.is(ErrorCode::Invalid)));
    }

    #[test]
    fn ones_own_comes_before_somebody_elses() {
        let change = may(Role::User, SetDesired::KIND, None).unwrap();
        let permitted = change.permitted(vec![of("user/bob"), of("user/ann")]).unwrap();
        assert_eq!(permitted.iter().map(|row| &*row.task.owner).collect::<Vec<_>>(), ["user/ann"]);
        assert_eq!(change.permitted(Vec::new()), Ok(Vec::new()), "who finds nothing is not denied");
        let denied = change.permitted(vec![of("user/bob")]).unwrap_err();
        assert_eq!(denied.message, "task-0000000007 belongs to user/bob: only they and administrators may change it");
        // An administrator of that name is somebody else.
        assert!(change.permitted(vec![of("admin/ann")]).is_err());
        let read = may(Role::User, GetTasks::KIND, None).unwrap();
        assert_eq!(read.permitted(vec![of("user/bob"), of("user/ann")]).unwrap().len(), 2);
    }

    #[test]
    fn what_is_denied_is_audited_and_what_failed_is_not() {
        let refused = |code| ErrorReply::new(code, "no");
        for (kind, code, audited) in [
            (ListTasks::KIND, ErrorCode::Denied, true),
            (9999, ErrorCode::Denied, true),
            (TaskOutput::KIND, ErrorCode::Stale, true),
            (GetTasks::KIND, ErrorCode::NotFound, false),
            (SetDesired::KIND, ErrorCode::NotFound, true),
            (Submit::KIND, ErrorCode::Conflict, true),
            (Submit::KIND, ErrorCode::Unavailable, false),
            (Submit::KIND, ErrorCode::Busy, false),
        ] {
            assert_eq!(is_audited(kind, &refused(code)), audited, "{kind} {code:?}");
        }
    }
}
