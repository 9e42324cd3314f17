//! Lists of tasks, page by page.

use ado_proto::ids::{Reference, ReferenceError};
use ado_proto::request::{ErrorCode, ErrorReply, ListTasks, TaskPage};
use ado_proto::{GroupId, TaskId};

use super::{Asked, MAX_ROWS, unavailable};
use crate::controller::filter;
use crate::store::{Find, ListFilter, Row};

/// Most tasks looked at for one answer. What is wanted may be rare, and others want answers too.
const MOST_LOOKED_AT: usize = 5000;
/// Tasks read from the store at once while looking: each may be as long as a specification may be.
const AT_ONCE: usize = 250;
/// Most bytes of input of the tasks of one page. Their texts are shortened after, to fit an answer.
const MOST_BYTES: usize = 16 * 1024 * 1024;

const STATES: [&str; 8] = ["queued", "starting", "running", "paused", "waiting", "completed", "failed", "cancelled"];

impl Asked<'_> {
    pub(super) async fn list_tasks(&self, request: ListTasks) -> Result<TaskPage, ErrorReply> {
        let (rows, next) = self.page(&request).await?;
        Ok(TaskPage { tasks: self.infos(&rows).await?, next })
    }

    /// Rows that fit, and where the next page goes on.
    pub(super) async fn page(&self, request: &ListTasks) -> Result<(Vec<Row>, Option<TaskId>), ErrorReply> {
        if let Some(unknown) = request.states.iter().find(|state| !STATES.contains(&state.as_str())) {
            let message = format!("`{unknown}` is not a state: {}", STATES.join(", "));
            return Err(ErrorReply::new(ErrorCode::Invalid, message));
        }
        let group = match &request.only.group {
            Some(text) => Some(self.find_group(text).await?),
            None => None,
        };
        let limit = request.limit.clamp(1, MAX_ROWS) as usize;
        let mut page = Page { wanted: Vec::new(), bytes: 0, looked_at: 0, last: request.before, is_over: false };
        while !page.is_over && page.wanted.len() < limit && page.looked_at < MOST_LOOKED_AT && page.bytes < MOST_BYTES {
            let at_once = if filter::looks_at_tasks(&request.only) { AT_ONCE } else { limit - page.wanted.len() };
            let at_once = at_once.min(AT_ONCE).min(MOST_LOOKED_AT - page.looked_at);
            let filter = ListFilter {
                audience: self.access.audience.clone(),
                states: request.states.clone(),
                group,
                name: request.only.name.clone(),
                dead: request.dead,
                before: page.last,
                limit: at_once,
            };
            let rows = self.shared.store.list(&filter).await.map_err(unavailable)?;
            page.is_over = rows.len() < at_once;
            page.look_at(rows, request, limit);
        }
        let next = page.last.filter(|_| !page.is_over);
        Ok((page.wanted, next))
    }

    /// The group that people mean: its id, or the beginning of one.
    async fn find_group(&self, text: &str) -> Result<GroupId, ErrorReply> {
        let not_found =
            || ErrorReply::new(ErrorCode::NotFound, format!("there is no group `{text}`")).hint("ado list --all");
        let find = match text.parse::<Reference>() {
            Ok(Reference::Full(id)) => Find::Group(GroupId(id)),
            // Without `group-` in front it reads like a task's.
            Ok(Reference::Group(tail) | Reference::Task(tail)) => Find::GroupPrefix(tail),
            Err(error @ ReferenceError::TooShort(_)) => {
                return Err(ErrorReply::new(ErrorCode::Invalid, error.to_string()).hint("ado list --all"));
            }
            Err(ReferenceError::NotAnId(_)) => return Err(not_found()),
        };
        let mut groups: Vec<_> = self.look(&find).await?.iter().filter_map(|row| row.task.group).collect();
        groups.dedup_by_key(|member| member.id);
        match &groups[..] {
            [one] => Ok(one.id),
            [] => Err(not_found()),
            several => {
                let some: Vec<_> = several.iter().take(5).map(|member| member.id.short()).collect();
                let message = format!("`{text}` fits {} of them: {}", several.len(), some.join(", "));
                Err(ErrorReply::new(ErrorCode::Ambiguous, message).hint("give more characters"))
            }
        }
    }
}

/// A page as it is gathered.
struct Page {
    wanted: Vec<Row>,
    bytes: usize,
    looked_at: usize,
    /// The task looked at last: where the next page goes on.
    last: Option<TaskId>,
    is_over: bool,
}

impl Page {
    fn look_at(&mut self, rows: Vec<Row>, request: &ListTasks, limit: usize) {
        let count = rows.len();
        for (index, row) in rows.into_iter().enumerate() {
            self.looked_at += 1;
            self.last = Some(row.task.id);
            if filter::is_past(&row.task, &request.only) {
                self.is_over = true;
                return;
            }
            if filter::fits(&row.task, &request.only) {
                self.bytes += row.task.spec.input.summary().len();
                self.wanted.push(row);
            }
            if self.wanted.len() >= limit || self.bytes >= MOST_BYTES {
                // What was read and not looked at is for the next page.
                self.is_over &= index + 1 == count;
                return;
            }
        }
    }
}
