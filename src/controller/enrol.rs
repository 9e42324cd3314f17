//! How somebody becomes a member: tokens, first certificates, renewals, revocation.

use std::time::Duration;

use ado_certs::{VerifiedPeer, secret};
use ado_proto::request::{
    CreateToken, CreatedToken, Enrol, Enrolled, ErrorCode, ErrorReply, Renew, Renewed, Request, RevokeIdentity,
    RevokeToken, RevokedIdentity, TokenInfo, WorkerBounds,
};
use ado_proto::{Audience, Namespace, Principal, Role, WorkerId, ids};
use bytes::Bytes;

use super::access::Access;
use super::authority::IssueError;
use super::requests::unavailable;
use super::{Shared, bounds};
use crate::store::{Audit, Key, Token};

/// Longest life of a token.
const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);

pub(super) fn audit(access: &Access, action: &'static str, target: impl Into<String>) -> Audit {
    Audit::done(access.namespace.clone(), access.principal.clone(), action, target)
}

fn issue_error(error: IssueError) -> ErrorReply {
    match error {
        IssueError::Request(error) => ErrorReply::new(ErrorCode::Invalid, error.to_string()),
        IssueError::Store(error) => unavailable(error),
    }
}

fn revoked(who: &Principal) -> ErrorReply {
    ErrorReply::new(ErrorCode::BadCertificate, format!("{who} has been revoked"))
        .hint("ask an administrator for a new join string, with another name")
}

/// Makes a token. The secret is in the answer and nowhere else.
pub(super) async fn create_token(
    shared: &Shared,
    access: &Access,
    request: CreateToken,
) -> Result<CreatedToken, ErrorReply> {
    let invalid = |message: String| Err(ErrorReply::new(ErrorCode::Invalid, message));
    let ttl = Duration::from_millis(request.ttl_ms);
    if ttl.is_zero() || ttl > MAX_TTL {
        return invalid(format!("a token lives between 1 ms and 366 days, not {ttl:?}"));
    }
    if request.uses == Some(0) {
        return invalid("a token with 0 uses is of no use: give at least 1".into());
    }
    if request.role == Role::Controller {
        return invalid("controllers do not join by token".into());
    }
    for name in [Some(&request.namespace.0), request.name.as_ref()].into_iter().flatten() {
        if !ids::is_name(name) {
            return invalid(format!("`{name}` is not a name: 1 to 63 of a-z A-Z 0-9 . _ @ -"));
        }
    }
    if request.bounds != WorkerBounds::default() && request.role != Role::Worker {
        return invalid(format!("pools, agents, labels and slots are bounds for workers, not for a {}", request.role));
    }
    if let Some(wrong) = bounds::wrong(&request.bounds) {
        return invalid(wrong);
    }
    let now = shared.store.now().await.map_err(unavailable)?;
    let secret = secret::generate();
    let mut id = [0; 5];
    shared.env.fill(&mut id);
    let id = id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let token = Token {
        id: id.clone(),
        hash: secret::hash(&secret),
        role: request.role,
        namespace: request.namespace,
        name: request.name,
        uses_left: request.uses,
        created_at: now,
        expires_at: now.after(ttl),
        created_by: access.owner.clone(),
        bounds: request.bounds,
    };
    let expires_at = token.expires_at;
    shared.store.put_token(token, audit(access, "CreateToken", &id)).await.map_err(unavailable)?;
    let join = shared.authority.join_string(shared.advertised(), secret).to_string();
    Ok(CreatedToken { id, join, expires_at })
}

/// Lists tokens without their secrets.
pub(super) async fn list_tokens(shared: &Shared, access: &Access) -> Result<Vec<TokenInfo>, ErrorReply> {
    let tokens = shared.store.tokens(&access.audience).await.map_err(unavailable)?;
    let info = |token: Token| TokenInfo {
        id: token.id,
        role: token.role,
        namespace: token.namespace,
        name: token.name,
        uses_left: token.uses_left,
        created_at: token.created_at,
        expires_at: token.expires_at,
        created_by: token.created_by,
        bounds: token.bounds,
    };
    Ok(tokens.into_iter().map(info).collect())
}

/// Makes a token useless. `kept` is remembered with it.
pub(super) async fn revoke_token(
    shared: &Shared,
    access: &Access,
    request: RevokeToken,
    kept: Option<(Key, Bytes)>,
) -> Result<(), ErrorReply> {
    let line = audit(access, "RevokeToken", &request.id);
    if shared.store.revoke_token(&access.audience, &request.id, kept, line).await.map_err(unavailable)? {
        return Ok(());
    }
    let message = format!("there is no token `{}`", request.id);
    Err(ErrorReply::new(ErrorCode::NotFound, message).hint("ado token list"))
}

/// Gives a stranger with a token its first certificate.
pub(super) async fn enrol(shared: &Shared, request: Enrol) -> Result<Enrolled, ErrorReply> {
    // What cannot be issued must not use the token up.
    if !ids::is_name(&request.name) {
        let message = format!("`{}` is not a name: 1 to 63 of a-z A-Z 0-9 . _ @ -", request.name);
        return Err(ErrorReply::new(ErrorCode::Invalid, message));
    }
    let checked = shared.authority.check_request(&request.csr, shared.env.now());
    checked.map_err(|error| ErrorReply::new(ErrorCode::Invalid, error.to_string()))?;
    let taken = shared.store.take_token(&secret::hash(&request.secret)).await.map_err(unavailable)?;
    let token = taken.map_err(|refusal| {
        ErrorReply::new(ErrorCode::BadToken, refusal.to_string())
            .hint("ask an administrator for a new one: ado token create")
    })?;
    let name = match (token.name, token.role) {
        (Some(name), _) => name,
        (None, Role::Worker) => WorkerId(shared.env.uuid()).to_string(),
        (None, _) => request.name,
    };
    let who = Principal { role: token.role, namespace: token.namespace, name };
    if who.role == Role::Worker {
        shared.store.bind(&who.to_string(), &token.bounds).await.map_err(unavailable)?;
    }
    let now = shared.store.now().await.map_err(unavailable)?;
    let issued = shared.authority.issue(&*shared.store, &request.csr, &who, now).await.map_err(issue_error)?;
    let issued = issued.ok_or_else(|| revoked(&who))?;
    tracing::info!(%who, serial = issued.serial, token = token.id, "enrolled");
    let target = format!("{} by token {}", issued.serial, token.id);
    let line = Audit::done(who.namespace.clone(), who.to_string(), Enrol::NAME, target);
    shared.audit(line).await.map_err(unavailable)?;
    Ok(Enrolled {
        identity: who.to_string(),
        chain: issued.chain.iter().map(|der| der.to_vec()).collect(),
        controllers: shared.advertised(),
        not_after: issued.not_after,
    })
}

/// Gives a member its next certificate.
pub(super) async fn renew(
    shared: &Shared,
    peer: &VerifiedPeer,
    request: Renew,
) -> Result<(Renewed, ado_certs::Issued), ErrorReply> {
    let who = peer.principal();
    let now = shared.store.now().await.map_err(unavailable)?;
    let issued = shared.authority.issue(&*shared.store, &request.csr, who, now).await.map_err(issue_error)?;
    let issued = issued.ok_or_else(|| revoked(who))?;
    let target = issued.serial.clone();
    let line = Audit::done(who.namespace.clone(), who.to_string(), Renew::NAME, target);
    shared.audit(line).await.map_err(unavailable)?;
    let chain = issued.chain.iter().map(|der| der.to_vec()).collect();
    Ok((Renewed { chain, not_after: issued.not_after }, issued))
}

/// Denies an identity everywhere, at once.
pub(super) async fn revoke_identity(
    shared: &Shared,
    access: &Access,
    request: RevokeIdentity,
) -> Result<RevokedIdentity, ErrorReply> {
    let who: Principal = request
        .identity
        .parse()
        .map_err(|error: ids::PrincipalError| ErrorReply::new(ErrorCode::Invalid, error.to_string()))?;
    let inside = match &access.audience {
        Audience::Everywhere => true,
        Audience::Namespace(Namespace(own)) => who.namespace.0 == *own,
    };
    let not_found = || ErrorReply::new(ErrorCode::NotFound, format!("{who} has no certificate"));
    if !inside {
        return Err(not_found());
    }
    let line = audit(access, "RevokeIdentity", who.to_string());
    let serials = shared.store.revoke_identity(&who.to_string(), line).await.map_err(unavailable)?;
    if serials.is_empty() {
        return Err(not_found());
    }
    shared.apply_denied().await.map_err(unavailable)?;
    Ok(RevokedIdentity { certificates: u32::try_from(serials.len()).unwrap_or(u32::MAX) })
}
