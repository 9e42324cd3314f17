//! Secrets: kept closed, and opened for the attempt that names them.
//!
//! Their values are in memory here only while a request or an assignment passes through.

use std::sync::Arc;

use ado_certs::MasterKey;
use ado_proto::request::{ErrorCode, ErrorReply, RemoveSecret, SecretInfo, SetSecret, encode_response};
use ado_proto::session::GivenSecret;
use ado_proto::spec::SECRET_BYTES;
use ado_proto::{Namespace, Secret, ids};

use super::access::Access;
use super::requests::unavailable;
use super::{Shared, enrol};
use crate::store::{self, ClosedSecret};

/// Opens and closes them.
#[derive(Clone)]
pub(super) struct Safe(Arc<MasterKey>);

impl Safe {
    pub(super) fn new(key: MasterKey) -> Self {
        Self(Arc::new(key))
    }
}

/// What a closed value is bound to: it opens nowhere else.
fn context(namespace: &Namespace, name: &str) -> String {
    format!("secret/{namespace}/{name}")
}

fn not_found(namespace: &Namespace, name: &str) -> ErrorReply {
    ErrorReply::new(ErrorCode::NotFound, format!("there is no secret `{name}` in namespace {namespace}"))
        .hint("ado secret list")
}

fn somebody_elses(info: &SecretInfo) -> ErrorReply {
    let message =
        format!("secret `{}` belongs to {}: only they and administrators may change it", info.name, info.owner);
    ErrorReply::new(ErrorCode::Denied, message).hint("give yours another name")
}

/// Keeps a secret, or a new version of it.
pub(super) async fn set(shared: &Shared, access: &Access, request: SetSecret) -> Result<SecretInfo, ErrorReply> {
    let SetSecret { name, value } = request;
    if !ids::is_name(&name) {
        let message = format!("`{name:.64}` is not a name: 1 to 63 of a-z A-Z 0-9 . _ @ -");
        return Err(ErrorReply::new(ErrorCode::Invalid, message));
    }
    let (bytes, least, most) = (value.expose().len(), SECRET_BYTES.start(), SECRET_BYTES.end());
    if !SECRET_BYTES.contains(&bytes) || value.expose().contains('\0') {
        let message = format!("a secret has {least} to {most} bytes and none of them is NUL; this one has {bytes}");
        return Err(ErrorReply::new(ErrorCode::Invalid, message)
            .hint("what is shorter could not be hidden in output; keep what is longer in a file on the workers"));
    }
    let namespace = access.namespace.clone();
    let closed = shared.safe.0.seal(&context(&namespace, &name), value.expose().as_bytes());
    let line = enrol::audit(access, "SetSecret", name.clone());
    let secret = ClosedSecret { name, namespace, owner: access.owner.clone(), closed };
    let kept = shared.store.put_secret(secret, access.only(), line).await.map_err(unavailable)?;
    kept.map_err(|former| somebody_elses(&former))
}

/// Forgets a secret.
pub(super) async fn remove(shared: &Shared, access: &Access, request: RemoveSecret) -> Result<Vec<u8>, ErrorReply> {
    let RemoveSecret { name } = request;
    let namespace = &access.namespace;
    let (info, _) = find(shared, namespace, &name).await?;
    if access.only().is_some_and(|only| only != info.owner) {
        return Err(somebody_elses(&info));
    }
    let line = enrol::audit(access, "RemoveSecret", name.clone());
    if !shared.store.remove_secret(namespace, &name, line).await.map_err(unavailable)? {
        return Err(not_found(namespace, &name));
    }
    Ok(encode_response(&Ok(())))
}

async fn find(shared: &Shared, namespace: &Namespace, name: &str) -> Result<(SecretInfo, Vec<u8>), ErrorReply> {
    let found = shared.store.secret(namespace, name).await.map_err(unavailable)?;
    found.ok_or_else(|| not_found(namespace, name))
}

/// Checks that secrets are there that somebody wants to use.
pub(super) async fn check<'a>(
    shared: &Shared,
    namespace: &Namespace,
    names: impl IntoIterator<Item = &'a String>,
) -> Result<(), ErrorReply> {
    for name in names {
        find(shared, namespace, name).await.map_err(|refusal| match refusal.is(ErrorCode::NotFound) {
            true => ErrorReply { hints: vec![format!("ado secret set {name}")], ..refusal },
            false => refusal,
        })?;
    }
    Ok(())
}

/// What the secrets of a task are at this moment.
///
/// # Errors
/// The store's: then nobody knows.
pub(super) async fn given(
    shared: &Shared,
    namespace: &Namespace,
    wanted: &std::collections::BTreeMap<String, String>,
) -> store::Result<Vec<GivenSecret>> {
    let mut given = Vec::with_capacity(wanted.len());
    for (variable, name) in wanted {
        let value = match shared.store.secret(namespace, name).await? {
            Some((_, closed)) => open(&shared.safe, namespace, name, &closed),
            None => Err(format!(
                "the secret `{name}` was removed: set it again (ado secret set {name}) and run the task anew"
            )),
        };
        given.push(GivenSecret { variable: variable.clone(), value });
    }
    Ok(given)
}

fn open(safe: &Safe, namespace: &Namespace, name: &str, closed: &[u8]) -> Result<Secret, String> {
    let opened = safe.0.open_item(&context(namespace, name), closed).map_err(|error| {
        tracing::error!(%namespace, name, %error, "a secret cannot be opened");
        format!("the secret `{name}` cannot be opened: {error}")
    })?;
    let text = std::str::from_utf8(&opened).map_err(|_| format!("the secret `{name}` is not text"))?;
    Ok(Secret::new(text.to_owned()))
}
