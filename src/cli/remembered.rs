//! What this machine has seen of a mesh, in place of the mesh that does not answer. Marked as such wherever it is shown.

use std::io;

use ado_proto::ids::Reference;
use ado_proto::record::Stream;
use ado_proto::request::{ErrorCode, ListTasks, StartAt, TaskFilter, TaskInfo};
use ado_proto::{GroupId, Offset, Timestamp};
use serde_json::{Value, json};

use super::error::{Error, Kind};
use super::output::{Format, age, plain, print};
use super::surviving::Surviving;
use super::watch::{Look, Painter, Sheet};
use crate::client::cache::{KnownRecord, KnownTask, Memory};
use crate::json;

/// Bytes written at once.
const BATCH: usize = 256 * 1024;

/// Which part of a log is printed, and how.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) start: StartAt,
    pub(crate) look: Look,
    /// Only what survived.
    pub(crate) only_final: bool,
}

/// What is remembered of one mesh.
pub(crate) struct Remembered {
    memory: Memory,
    /// The mesh, for people.
    context: String,
    /// Why the mesh itself was not asked; `None`: nobody wanted that.
    why: Option<String>,
    format: Format,
    quiet: bool,
    now: Timestamp,
}

impl Remembered {
    pub(crate) fn new(memory: Memory, context: String, why: Option<String>, app: &super::session::App) -> Self {
        let (format, quiet) = (app.global.output, app.global.quiet);
        Self { memory, context, why, format, quiet, now: app.env.now() }
    }

    /// The tasks that fit, newest first.
    ///
    /// # Errors
    /// When no task was ever seen.
    pub(crate) fn list(&self, wanted: &ListTasks) -> Result<Vec<KnownTask>, Error> {
        let known = self.known()?;
        let fits = |task: &KnownTask| {
            let states = &wanted.states;
            (states.is_empty() || states.contains(&task.info.state)) && fits(&task.info, &wanted.only)
        };
        Ok(known.into_iter().filter(fits).take(wanted.limit as usize).collect())
    }

    /// The task, or the tasks of the group, that a reference means.
    ///
    /// # Errors
    /// When there is none, or when it fits several.
    pub(crate) fn find(&self, reference: &str) -> Result<Vec<KnownTask>, Error> {
        let found = find(self.known()?, reference);
        // The members of a group are one thing, but a task's short id means one task.
        let by_task = |info: &TaskInfo| info.id.short().starts_with(&reference.to_ascii_lowercase());
        let name = |info: &TaskInfo| if by_task(info) { info.id.short() } else { name_of(info) };
        let mut different: Vec<_> = found.iter().map(|task| name(&task.info)).collect();
        different.dedup();
        match different.len() {
            0 => Err(self.unknown(&format!("`{reference}` is not among the tasks that this machine has seen"))),
            1 => Ok(found),
            count => {
                let some = different[..count.min(5)].join(", ");
                let error = Error::new(
                    Kind::Refused(ErrorCode::Ambiguous as u16),
                    format!("`{reference}` fits {count} of them: {some}"),
                );
                Err(error.hint("give more characters, or the id of one"))
            }
        }
    }

    /// Says on stderr what is shown.
    pub(crate) fn say(&self, seen_at: Option<Timestamp>) {
        if self.quiet || self.format == Format::Json {
            return;
        }
        let problem = self.why.as_ref().map(|why| format!("not connected ({}); ", plain(why))).unwrap_or_default();
        let when = seen_at.map(|at| format!(", {} ago", age(self.now.since(at)))).unwrap_or_default();
        eprintln!("{}: {problem}from what this machine has seen{when}", self.context);
    }

    /// Prints tasks with `print_text`, marked: as one object when there is one and `single`, else as an array.
    pub(crate) fn print(
        &self,
        tasks: &[KnownTask],
        single: bool,
        text: impl FnOnce(&[TaskInfo]) -> String,
    ) -> Result<(), Error> {
        self.say(tasks.iter().map(|task| task.seen_at).max());
        let values: Vec<_> = tasks.iter().map(marked).collect();
        let value = match &values[..] {
            [one] if single => one.clone(),
            _ => Value::Array(values),
        };
        let infos: Vec<_> = tasks.iter().map(|task| task.info.clone()).collect();
        Ok(print(self.format, &value, || text(&infos))?)
    }

    /// Prints what is known of a task's log from `start` on, and says what of it is not. `member` is its index and the
    /// number of tasks when it is one of several.
    ///
    /// # Errors
    /// When nothing of it is known.
    pub(crate) fn print_log(&self, task: &TaskInfo, member: Option<(usize, usize)>, part: Part) -> Result<(), Error> {
        let Part { start, look, only_final } = part;
        let name = task.id.short();
        let log = self.memory.log(task.id, self.now);
        let log = log.ok_or_else(|| self.unknown(&format!("this machine has seen nothing of the log of {name}")))?;
        self.say(Some(log.seen_at));
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let painter = Painter::new(task.id, None, look);
        let painter = match member {
            Some((index, count)) => painter.among(number(index), number(count)),
            None => painter,
        };
        let mut page = Page { task, look, painter, sheet: Sheet::new(look.terminals(), look.raw) };
        page.event(&json!({ "type": "cached", "cachedAt": json::rfc3339(log.seen_at), "reason": self.why }));
        let surviving = only_final.then(|| {
            let mut surviving = Surviving::default();
            for known in log.from(StartAt::Offset(Offset(0))) {
                if let KnownRecord::Record(record) = known {
                    surviving.learn(&record);
                }
            }
            surviving
        });
        for known in log.from(start) {
            match known {
                KnownRecord::Record(record)
                    if surviving.as_ref().is_some_and(|surviving| !surviving.keeps(&record)) => {}
                KnownRecord::Record(record) => page.painter.record(&record, &mut page.sheet),
                KnownRecord::Missing { from, to } => page.missing(from.0, Some(to.0)),
            }
            if page.sheet.weight() >= BATCH && !page.flush()? {
                return Ok(());
            }
        }
        let known = log.next();
        if known < task.next_offset {
            page.missing(known.0, Some(task.next_offset.0));
        } else if task.outcome.is_none() && !log.is_ended() {
            page.missing(known.0, None);
        }
        page.painter.finish(&mut page.sheet);
        page.sheet.finish();
        page.flush().map(drop)
    }

    fn known(&self) -> Result<Vec<KnownTask>, Error> {
        let known = self.memory.tasks();
        if known.is_empty() {
            return Err(self.unknown("this machine has seen no tasks of it"));
        }
        Ok(known)
    }

    /// The connection is the reason, where it is one.
    fn unknown(&self, what: &str) -> Error {
        match &self.why {
            Some(why) => Error::new(Kind::Network, format!("{}: not connected ({why}), and {what}", self.context)),
            None => Error::new(Kind::Refused(ErrorCode::NotFound as u16), format!("{}: {what}", self.context))
                .hint("ask the mesh: leave out --cached"),
        }
    }
}

/// A log on its way out.
struct Page<'a> {
    task: &'a TaskInfo,
    look: Look,
    painter: Painter,
    sheet: Sheet,
}

impl Page<'_> {
    /// Says that records are not known: those below `to`, or all that there may be.
    fn missing(&mut self, from: u64, to: Option<u64>) {
        let text = match to.map(|to| to.saturating_sub(1)) {
            Some(last) if last == from => format!("record {from} is not known here"),
            Some(last) => format!("records {from} to {last} are not known here"),
            None => format!("what came after record {} is not known here", from.saturating_sub(1)),
        };
        self.event(&json!({ "type": "missing", "from": from, "to": to }));
        self.painter.notice(&text, true, &mut self.sheet);
    }

    fn event(&mut self, event: &Value) {
        if self.look.format == Format::Json {
            let mut event = event.clone();
            event["taskId"] = json!(self.task.id);
            self.sheet.output(Stream::Stdout, format!("{event}\n").as_bytes());
        }
    }

    /// Writes what is gathered. Returns whether anybody reads.
    fn flush(&mut self) -> Result<bool, Error> {
        match self.sheet.take().write() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            written => Ok(written.map(|()| true)?),
        }
    }
}

/// A task as JSON, marked as remembered.
fn marked(task: &KnownTask) -> Value {
    let mut value = json::task(&task.info);
    value["cached"] = json!(true);
    value["cachedAt"] = json!(json::rfc3339(task.seen_at));
    value
}

/// Like the controller: by id, by the beginning of one, by group, else by name.
fn find(known: Vec<KnownTask>, reference: &str) -> Vec<KnownTask> {
    let tail = |short: String| short.split_once('-').map(|(_, tail)| tail.to_owned()).unwrap_or_default();
    let of_group = |info: &TaskInfo, fits: &dyn Fn(GroupId) -> bool| info.group.is_some_and(|member| fits(member.id));
    let parsed = reference.parse::<Reference>();
    let by_id = |info: &TaskInfo| match &parsed {
        Ok(Reference::Full(id)) => info.id.0 == *id || of_group(info, &|group| group.0 == *id),
        Ok(Reference::Task(beginning)) => tail(info.id.short()).starts_with(beginning),
        Ok(Reference::Group(beginning)) => of_group(info, &|group| tail(group.short()).starts_with(beginning)),
        Err(_) => false,
    };
    let by_name = !known.iter().any(|task| by_id(&task.info));
    let fits =
        |task: &KnownTask| if by_name { task.info.name.as_deref() == Some(reference) } else { by_id(&task.info) };
    let mut found: Vec<_> = known.iter().filter(|task| fits(task)).cloned().collect();
    found.sort_by_key(|task| (task.info.group.map(|member| member.index), task.info.id));
    found
}

/// The group, or the task when it is on its own.
fn name_of(info: &TaskInfo) -> String {
    info.group.map_or_else(|| info.id.short(), |member| member.id.short())
}

/// Whether a task is one of those that are wanted.
fn fits(info: &TaskInfo, only: &TaskFilter) -> bool {
    let is = |wanted: &Option<String>, found: Option<&str>| wanted.is_none() || wanted.as_deref() == found;
    let group = |text: &String| match text.parse::<Reference>() {
        Ok(Reference::Full(id)) => info.group.is_some_and(|member| member.id.0 == id),
        Ok(Reference::Group(tail) | Reference::Task(tail)) => {
            info.group.is_some_and(|member| member.id.short()["group-".len()..].starts_with(&tail))
        }
        Err(_) => false,
    };
    let owner = info.owner.split_once('/').map(|(_, name)| name);
    let worker = info.worker.map(|worker| worker.to_string());
    only.group.as_ref().is_none_or(group)
        && is(&only.name, info.name.as_deref())
        && (is(&only.owner, Some(&info.owner)) || is(&only.owner, owner))
        && is(&only.agent, Some(&info.spec.agent))
        && is(&only.pool, Some(&info.spec.pool))
        && (is(&only.worker, info.worker_name.as_deref()) || is(&only.worker, worker.as_deref()))
        && only.labels.iter().all(|(name, value)| info.spec.labels.get(name) == Some(value))
        && only.since.is_none_or(|since| info.created_at >= since)
}

#[cfg(test)]
mod tests {
    use ado_proto::TaskId;
    use ado_proto::record::Member;
    use uuid::Uuid;

    use super::*;
    use crate::cli::status::tests::info;

    fn task(id: u128, name: Option<&str>, group: Option<(u128, u32)>) -> KnownTask {
        let group = group.map(|(id, index)| Member { id: GroupId(Uuid::from_u128(id)), index, count: 2 });
        let info = TaskInfo { id: TaskId(Uuid::from_u128(id)), name: name.map(Into::into), group, ..info() };
        KnownTask { seen_at: Timestamp(0), info }
    }

    #[test]
    fn references_mean_what_they_mean_to_the_controller() {
        let known = || vec![task(99, None, Some((5, 1))), task(9, Some("nightly"), None), task(7, None, Some((5, 0)))];
        let found =
            |reference: &str| find(known(), reference).iter().map(|t| t.info.id.0.as_u128()).collect::<Vec<_>>();
        assert_eq!(found("task-0000000007"), [7]);
        assert_eq!(found("00000000-0000-0000-0000-000000000009"), [9]);
        assert_eq!(found("nightly"), [9]);
        assert_eq!(found("group-0000000005"), [7, 99], "by index");
        assert_eq!(found("00000000-0000-0000-0000-000000000005"), [7, 99]);
        assert_eq!(found("task-0000"), [9, 7, 99]);
        assert_eq!(found("task-zzzz"), [0u128; 0]);
    }

    #[test]
    fn filters_are_those_of_the_controller() {
        let member = task(7, Some("x"), Some((5, 0))).info;
        let only = |change: &dyn Fn(&mut TaskFilter)| {
            let mut only = TaskFilter::default();
            change(&mut only);
            fits(&member, &only)
        };
        assert!(
            only(&|_| {}) && only(&|f| f.owner = Some("ann".into())) && only(&|f| f.owner = Some("user/ann".into()))
        );
        assert!(only(&|f| f.group = Some("group-0000".into())) && !only(&|f| f.group = Some("group-zzzz".into())));
        assert!(only(&|f| f.name = Some("x".into())) && !only(&|f| f.name = Some("y".into())));
        assert!(!only(&|f| f.worker = Some("box".into())) && !only(&|f| f.owner = Some("bob".into())));
        assert!(only(&|f| f.since = Some(Timestamp(1_000_000))) && !only(&|f| f.since = Some(Timestamp(1_000_001))));
        assert!(
            !only(&|f| drop(f.labels.insert("gpu".into(), "yes".into()))) && !only(&|f| f.pool = Some("gpu".into()))
        );
    }
}
