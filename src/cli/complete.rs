//! What can be typed next, asked of the mesh itself while the user presses Tab.
//!
//! Silent and quick: nothing is started, nothing is printed, and whoever does not answer within a second has no say.

use std::ffi::OsString;
use std::time::Duration;

use ado_proto::request::{ListTasks, TaskInfo};
use clap::Parser;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};

use super::Global;
use super::output::one_line;
use super::session::{App, Session};
use crate::config::Flags;

/// Variable by which a shell asks for completions.
pub(crate) const ASK: &str = "ADO_COMPLETE";
/// Longest wait for the mesh.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most tasks that are offered: nobody reads more.
const MOST: u32 = 200;
/// Longest description.
const WIDTH: usize = 60;

/// Answers a shell that asks what could be typed next. `false`: none does.
pub fn answer() -> bool {
    let asked = clap_complete::CompleteEnv::with_factory(super::command).var(ASK);
    match asked.try_complete(std::env::args_os(), std::env::current_dir().ok().as_deref()) {
        Ok(answered) => answered,
        Err(error) => error.exit(),
    }
}

/// Tasks, groups and names.
pub(crate) fn tasks() -> ArgValueCandidates {
    ArgValueCandidates::new(|| of_tasks(&[], all_of))
}

/// Those that have not ended.
pub(crate) fn open_tasks() -> ArgValueCandidates {
    const OPEN: [&str; 5] = ["queued", "starting", "running", "paused", "waiting"];
    ArgValueCandidates::new(|| of_tasks(&OPEN, all_of))
}

/// Those that failed.
pub(crate) fn failed_tasks() -> ArgValueCandidates {
    ArgValueCandidates::new(|| of_tasks(&["failed"], all_of))
}

/// Groups.
pub(crate) fn groups() -> ArgValueCandidates {
    ArgValueCandidates::new(|| of_tasks(&[], groups_of))
}

/// Names of tasks.
pub(crate) fn names() -> ArgValueCandidates {
    ArgValueCandidates::new(|| of_tasks(&[], names_of))
}

/// Names of workers.
pub(crate) fn workers() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let found = ask(async |session| session.client.workers(None).await.ok());
        let candidate = |worker: ado_proto::request::WorkerInfo| {
            CompletionCandidate::new(worker.name).help(Some(worker.state.into()))
        };
        found.unwrap_or_default().into_iter().map(candidate).collect()
    })
}

fn of_tasks(states: &[&str], candidates: impl Fn(&[TaskInfo]) -> Vec<CompletionCandidate>) -> Vec<CompletionCandidate> {
    let states: Vec<String> = states.iter().map(|state| (*state).into()).collect();
    let request = ListTasks { states: states.clone(), limit: MOST, ..ListTasks::default() };
    let found = ask(async |session| session.client.list(&request).await.ok().map(|page| page.tasks));
    candidates(&found.or_else(|| remembered(&states)).unwrap_or_default())
}

/// What this machine has seen of a mesh that does not answer.
fn remembered(states: &[String]) -> Option<Vec<TaskInfo>> {
    let app = App::new(typed(std::env::args_os()), Flags::default()).ok()?;
    let known = app.memory().ok()??.tasks().into_iter().map(|known| known.info);
    Some(known.filter(|task| states.is_empty() || states.contains(&task.state)).take(MOST as usize).collect())
}

fn all_of(tasks: &[TaskInfo]) -> Vec<CompletionCandidate> {
    [names_of(tasks), groups_of(tasks), ids_of(tasks)].into_iter().flatten().collect()
}

fn ids_of(tasks: &[TaskInfo]) -> Vec<CompletionCandidate> {
    let help = |task: &TaskInfo| one_line(&format!("{}: {}", task.state, task.spec.input.summary()), WIDTH);
    tasks.iter().map(|task| CompletionCandidate::new(task.id.short()).help(Some(help(task).into()))).collect()
}

/// Each once, the newest first.
fn groups_of(tasks: &[TaskInfo]) -> Vec<CompletionCandidate> {
    let mut seen = std::collections::BTreeSet::new();
    let groups = tasks.iter().filter_map(|task| task.group).filter(|member| seen.insert(member.id));
    let help = |count: u32| format!("{count} tasks");
    groups.map(|group| CompletionCandidate::new(group.id.short()).help(Some(help(group.count).into()))).collect()
}

/// Each once, the newest first.
fn names_of(tasks: &[TaskInfo]) -> Vec<CompletionCandidate> {
    let mut seen = std::collections::BTreeSet::new();
    let named = tasks.iter().filter_map(|task| Some((task.name.as_ref()?, task)));
    let named = named.filter(|(name, _)| seen.insert((*name).clone()));
    named.map(|(name, task)| CompletionCandidate::new(name).help(Some(task.state.clone().into()))).collect()
}

/// Asks the mesh that the line typed so far means.
fn ask<T>(question: impl AsyncFnOnce(&Session) -> Option<T>) -> Option<T> {
    let global = typed(std::env::args_os());
    // Fails where there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let answer = runtime.block_on(async {
        let app = App::new(global, Flags::default()).ok()?;
        let within = |work| tokio::time::timeout(PATIENCE, work);
        within(async {
            let session = app.session_if_up().await.ok()?;
            question(&session).await
        })
        .await
        .ok()?
    });
    runtime.shutdown_background();
    answer
}

/// The flags every command has, as far as they are typed. A line that is being typed is not yet a command line.
fn typed(args: impl Iterator<Item = OsString>) -> Global {
    let words: Vec<OsString> = args.skip_while(|arg| arg != "--").skip(2).collect();
    let mut kept = vec![OsString::from("ado")];
    for (at, word) in words.iter().enumerate() {
        let text = word.to_string_lossy();
        let takes_value = ["--context", "--config", "--namespace"].contains(&&*text);
        if takes_value && words.len() > at + 1 {
            kept.extend([word.clone(), words[at + 1].clone()]);
        } else if text == "--remote" || ["--context=", "--config=", "--namespace="].iter().any(|f| text.starts_with(f))
        {
            kept.push(word.clone());
        }
    }
    Line::try_parse_from(&kept).or_else(|_| Line::try_parse_from(&kept[..1])).expect("nothing is required").global
}

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    global: Global,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_typed_so_far_say_which_mesh_is_meant() {
        let typed = |line: &str| {
            let global = super::typed(line.split(' ').map(OsString::from));
            (global.context, global.remote, global.namespace)
        };
        assert_eq!(typed("ado -- ado attach ta"), (None, false, None));
        assert_eq!(typed("ado -- ado --remote attach ta"), (None, true, None));
        assert_eq!(typed("ado -- ado attach --context staging -q ta"), (Some("staging".into()), false, None));
        assert_eq!(typed("ado -- ado attach --namespace=team ta"), (None, false, Some("team".into())));
        assert_eq!(typed("ado -- ado attach --context"), (None, false, None), "not yet typed");
    }
}
