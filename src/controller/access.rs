//! Who may do what: one table of roles and requests, and one rule for namespaces.

use ado_proto::request::{
    CreateToken, Detach, ErrorCode, ErrorReply, Follow, GetTasks, Header, Hello, KNOWN, ListEvents, ListTasks,
    ListTokens, ListWorkers, PurgeDead, Renew, Request, RetryDead, RevokeIdentity, RevokeToken, Safety, SetDesired,
    Submit, TaskOutput, WorkerSession,
};
use ado_proto::{Audience, Namespace, Principal, Role, ids};

/// The table. A pair that is not here is denied.
const ALLOWED: &[(u16, &[Role])] = &[
    (Hello::KIND, &[Role::Admin, Role::User, Role::Viewer, Role::Worker, Role::Controller]),
    (Renew::KIND, &[Role::Admin, Role::User, Role::Viewer, Role::Worker]),
    (CreateToken::KIND, &[Role::Admin]),
    (ListTokens::KIND, &[Role::Admin]),
    (RevokeToken::KIND, &[Role::Admin]),
    (RevokeIdentity::KIND, &[Role::Admin]),
    (Submit::KIND, &[Role::Admin, Role::User]),
    (GetTasks::KIND, &[Role::Admin, Role::User, Role::Viewer]),
    (ListTasks::KIND, &[Role::Admin, Role::User, Role::Viewer]),
    (SetDesired::KIND, &[Role::Admin, Role::User]),
    (RetryDead::KIND, &[Role::Admin, Role::User]),
    (PurgeDead::KIND, &[Role::Admin, Role::User]),
    (Follow::KIND, &[Role::Admin, Role::User, Role::Viewer]),
    // Everybody may end viewers of their own; others' are for administrators, which the request itself checks.
    (Detach::KIND, &[Role::Admin, Role::User, Role::Viewer]),
    (ListWorkers::KIND, &[Role::Admin, Role::User, Role::Viewer]),
    (ListEvents::KIND, &[Role::Admin, Role::User, Role::Viewer]),
    (WorkerSession::KIND, &[Role::Worker]),
    (TaskOutput::KIND, &[Role::Worker]),
];

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
}

/// Checks a request's header against the table.
///
/// # Errors
/// `Denied`, the same whether the request or the namespace is the reason. `Invalid` when the namespace cannot be one.
pub(super) fn check(principal: &Principal, header: &Header) -> Result<Access, ErrorReply> {
    let own = &principal.namespace;
    let is_allowed = ALLOWED.iter().any(|(kind, roles)| *kind == header.kind && roles.contains(&principal.role));
    let is_admin = principal.role == Role::Admin;
    if !is_allowed || !is_admin && header.namespace.as_ref().is_some_and(|wanted| wanted != own) {
        let message = format!("{principal} may not do that");
        return Err(
            ErrorReply::new(ErrorCode::Denied, message).hint("ask an administrator for a token of another role")
        );
    }
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
    })
}

/// The name of a request that changes something: such a one is in the audit log, also when it is denied.
pub(super) fn mutation(kind: u16) -> Option<&'static str> {
    let known = KNOWN.iter().find(|known| known.0 == kind && known.3 != Safety::Read);
    known.map(|known| known.2)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ado_proto::request::Enrol;

    use super::*;

    fn may(role: Role, kind: u16, namespace: Option<&str>) -> Result<Access, ErrorReply> {
        let principal = Principal { role, namespace: Namespace("home".into()), name: "ann".into() };
        let namespace = namespace.map(|name| Namespace(name.into()));
        check(&principal, &Header { minor: 1, kind, version: 1, id: None, namespace })
    }

    #[test]
    fn every_request_has_a_row_and_every_row_a_request() {
        let rows: BTreeSet<_> = ALLOWED.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(rows.len(), ALLOWED.len(), "a kind has two rows");
        // Strangers enrol; a member has no need to.
        let asked = KNOWN.iter().map(|known| known.0).filter(|kind| *kind != Enrol::KIND);
        assert_eq!(asked.collect::<BTreeSet<_>>(), rows);
        assert!(may(Role::Admin, Enrol::KIND, None).is_err());
        assert!(may(Role::Admin, 9999, None).is_err());
    }

    /// Written out, so that a change of the table is made twice, on purpose.
    #[test]
    fn what_every_role_may_ask() {
        let all = |role| {
            let allowed = KNOWN.iter().filter(|known| may(role, known.0, None).is_ok());
            allowed.map(|known| known.2).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            all(Role::Admin),
            "Hello Renew CreateToken ListTokens RevokeToken RevokeIdentity Submit GetTasks ListTasks SetDesired Follow \
             Detach RetryDead PurgeDead ListWorkers ListEvents"
        );
        assert_eq!(
            all(Role::User),
            "Hello Renew Submit GetTasks ListTasks SetDesired Follow Detach RetryDead PurgeDead ListWorkers ListEvents"
        );
        assert_eq!(all(Role::Viewer), "Hello Renew GetTasks ListTasks Follow Detach ListWorkers ListEvents");
        assert_eq!(all(Role::Worker), "Hello Renew WorkerSession TaskOutput");
        assert_eq!(all(Role::Controller), "Hello");
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
}
