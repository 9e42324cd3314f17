//! Who may do what: one table of roles and requests, and one rule for namespaces.

use ado_certs::VerifiedPeer;
use ado_proto::request::{
    CreateToken, ErrorCode, ErrorReply, Follow, GetTasks, Header, Hello, ListEvents, ListTasks, ListTokens,
    ListWorkers, Renew, Request, RevokeIdentity, RevokeToken, SetDesired, Submit, TaskOutput, WorkerSession,
};
use ado_proto::{Audience, Namespace, Role};

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
    (Follow::KIND, &[Role::Admin, Role::User, Role::Viewer]),
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
/// `Denied`, the same whether the request or the namespace is the reason.
pub(super) fn check(peer: &VerifiedPeer, header: &Header) -> Result<Access, ErrorReply> {
    let principal = peer.principal();
    let own = &principal.namespace;
    let is_allowed = ALLOWED.iter().any(|(kind, roles)| *kind == header.kind && roles.contains(&principal.role));
    let is_admin = principal.role == Role::Admin;
    if !is_allowed || !is_admin && header.namespace.as_ref().is_some_and(|wanted| wanted != own) {
        let message = format!("{principal} may not do that");
        return Err(
            ErrorReply::new(ErrorCode::Denied, message).hint("ask an administrator for a token of another role")
        );
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
