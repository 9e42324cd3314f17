//! Mutations happen once, and are audited.

use ado_proto::RequestId;
use ado_proto::request::{ErrorCode, ErrorReply, Request, RevokeToken, encode_response};

use super::{Asked, unavailable};
use crate::controller::enrol;
use crate::controller::refusals::cut;
use crate::store::{Audit, Committed, KEY_RETENTION, Key, Once, Outcome, Unit};

impl Asked<'_> {
    /// The key that makes a mutation happen once.
    pub(super) async fn once<R: Request>(
        &self,
        answer: impl FnOnce(&[Outcome]) -> R::Response + Send + 'static,
    ) -> Result<Option<Once>, ErrorReply> {
        let once = |key| Once { key, answer: Box::new(|outcomes| encode_response(&Ok(answer(outcomes))).into()) };
        Ok(self.key::<R>().await?.map(once))
    }

    /// What was answered to this very request before; `None`: it is new. For requests that mean something else when they
    /// are understood again: a name may mean another task by then.
    pub(super) async fn replayed<R: Request>(&self) -> Result<Option<Vec<u8>>, ErrorReply> {
        let Some(key) = self.key::<R>().await? else { return Ok(None) };
        match self.shared.store.answered(&key).await.map_err(unavailable)? {
            Some(seen) => conclude(seen).map(|(_, answer)| answer),
            None => Ok(None),
        }
    }

    pub(super) async fn key<R: Request>(&self) -> Result<Option<Key>, ErrorReply> {
        let Some(id) = self.header.id else { return Ok(None) };
        self.check_age(id).await?;
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        // The same words about another namespace are another request.
        digest.update(self.access.namespace.0.as_bytes());
        digest.update(&[0]);
        digest.update(&self.body);
        let body = digest.finish().as_ref().try_into().expect("SHA-256 has 32 bytes");
        Ok(Some(Key { principal: self.access.principal.clone(), kind: R::KIND, id, body }))
    }

    /// A key older than the retention may have been forgotten: repeating it would happen twice.
    async fn check_age(&self, id: RequestId) -> Result<(), ErrorReply> {
        let Some(made_at) = id.0.get_timestamp().filter(|_| id.0.get_version_num() == 7) else { return Ok(()) };
        let now = self.shared.store.now().await.map_err(unavailable)?;
        let age = u64::try_from(now.0 / 1_000_000).unwrap_or(0).saturating_sub(made_at.to_unix().0);
        if age > KEY_RETENTION.as_secs() {
            let message = format!("request {id} is {} hours old: its first answer is no longer kept", age / 3600);
            return Err(ErrorReply::new(ErrorCode::Conflict, message).hint("look with `ado list` whether it happened"));
        }
        Ok(())
    }

    pub(super) fn audit(&self, action: &'static str, target: String) -> Audit {
        Audit::done(self.access.namespace.clone(), self.access.principal.clone(), action, cut(target))
    }

    /// What became of the changes, none when it was a repetition; and the answer kept for the key.
    pub(super) async fn commit(&self, unit: Unit) -> Result<(Vec<Outcome>, Option<Vec<u8>>), ErrorReply> {
        conclude(self.shared.committer.commit(unit).await.map_err(unavailable)?)
    }

    pub(super) async fn revoke_token(&self, request: RevokeToken) -> Result<Vec<u8>, ErrorReply> {
        self.about(&request.id);
        if let Some(answer) = self.replayed::<RevokeToken>().await? {
            return Ok(answer);
        }
        let answer = encode_response::<()>(&Ok(()));
        let kept = self.key::<RevokeToken>().await?.map(|key| (key, answer.clone().into()));
        match enrol::revoke_token(self.shared, &self.access, request, kept).await {
            Ok(()) => Ok(answer),
            // It may have come twice at once.
            Err(refusal) => self.replayed::<RevokeToken>().await?.ok_or(refusal),
        }
    }
}

pub(super) fn conclude(committed: Committed) -> Result<(Vec<Outcome>, Option<Vec<u8>>), ErrorReply> {
    match committed {
        Committed::Done(outcomes, answer) => Ok((outcomes, answer.map(Into::into))),
        Committed::Replayed(answer) => Ok((Vec::new(), Some(answer.into()))),
        Committed::KeyConflict => {
            let message = "this request id was used for another request".to_owned();
            Err(ErrorReply::new(ErrorCode::Conflict, message).hint("use a new --idempotency-key"))
        }
    }
}
