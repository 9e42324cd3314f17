//! Asking viewers to leave.

use ado_proto::Role;
use ado_proto::request::{Detach, DetachedViewers, ErrorCode, ErrorReply, Request, encode_response};

use super::{Asked, unavailable};
use crate::store::{Committed, Unit};

impl Asked<'_> {
    /// Ends viewers of the tasks that a reference means. What happens is not in the store: it happens when the request is
    /// known to be new, and once it is remembered.
    pub(super) async fn detach(&self, request: Detach) -> Result<Vec<u8>, ErrorReply> {
        if let Some(answer) = self.replayed::<Detach>().await? {
            return Ok(answer);
        }
        if request.all && self.peer.principal().role != Role::Admin {
            let message = "only administrators may detach everybody's viewers";
            return Err(ErrorReply::new(ErrorCode::Denied, message).hint("leave --all out to detach your own"));
        }
        let rows = self.find(&request.reference).await?;
        let ids: Vec<_> = rows.iter().map(|row| row.task.id).collect();
        let own = (!request.all).then_some(self.access.principal.as_str());
        // Those elsewhere leave before it is remembered: to have left twice is to have left.
        let elsewhere = self.shared.detach_elsewhere(&ids, own, &self.access.owner).await?;
        let leaving = self.shared.viewers.take(&ids, own);
        let answer = DetachedViewers { viewers: leaving.count() + elsewhere };
        let committed = self.remember(&request, answer.clone()).await;
        match committed {
            Ok(None) => leaving.tell(&self.access.owner),
            // Said twice at once, or not to be had: nobody was told.
            Ok(Some(_)) | Err(_) => self.shared.viewers.put_back(leaving),
        }
        Ok(committed?.unwrap_or_else(|| encode_response(&Ok(answer))))
    }

    /// Remembers the answer; `Some` is the one that was given before.
    async fn remember(&self, request: &Detach, answer: DetachedViewers) -> Result<Option<Vec<u8>>, ErrorReply> {
        let once = self.once::<Detach>(move |_| answer).await?;
        let target = format!("{}{}", request.reference, if request.all { " of everybody" } else { "" });
        let unit = Unit { changes: Vec::new(), once, audit: Some(self.audit(Detach::NAME, target)) };
        match self.shared.committer.commit(unit).await.map_err(unavailable)? {
            Committed::Done(..) => Ok(None),
            seen => super::once::conclude(seen).map(|(_, answer)| answer),
        }
    }
}
