//! The dashboard on screens of several sizes, and what keys do.

use std::collections::BTreeMap;
use std::time::Duration;

use ado_proto::record::{Desired, Outcome, Progress};
use ado_proto::request::{Load, SystemEvent, TaskInfo, WorkerDesired, WorkerInfo};
use ado_proto::spec::{Containment, Input as Given};
use ado_proto::{Namespace, Offset, TaskId, Timestamp, WorkerId};
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::{Color, Modifier};
use uuid::Uuid;

use super::draw::draw;
use super::model::{Effect, Feed, Input, Key, Link, Mode, Model, Pane, update};
use super::plain;
use crate::cli::status::tests::info;

const NOW: Timestamp = Timestamp(1_000_000_000);

fn id(number: u128) -> TaskId {
    // As far apart as ids of different tasks are in what people see.
    TaskId(Uuid::from_u128((number << 64) | (number * 0x1357_9bdf_0246_8ace)))
}

fn task(number: u128, state: &str, command: &str) -> TaskInfo {
    TaskInfo {
        id: id(number),
        state: state.into(),
        created_at: Timestamp(NOW.0 - i64::try_from(number).unwrap() * 7_000_000),
        reason: None,
        retry_of: None,
        settled: None,
        asks: Vec::new(),
        usage: ado_proto::spec::Usage::default(),
        spec: ado_proto::spec::TaskSpec::new("shell", Given::Text(command.into())),
        ..info()
    }
}

fn tasks() -> Vec<TaskInfo> {
    let mut running = task(5, "running", "cargo test --workspace");
    running.name = Some("nightly".into());
    running.worker_name = Some("builder-1".into());
    running.next_offset = Offset(100);
    running.progress = Some(Progress { percent: Some(40), message: Some("compiling".into()) });
    let mut queued = task(4, "queued", "sleep 5");
    queued.reason = Some("no worker has a free slot: it starts when one is free".into());
    let mut failed = task(3, "failed", "make");
    (failed.outcome, failed.error) = (Some(Outcome::Failed), Some("exited with code 2".into()));
    let mut hostile = task(2, "running", "printf '\u{1b}[2J\u{1b}]0;x\u{7}' \u{202e}漢字\n; rm");
    hostile.worker_name = Some("w\u{9b}31m".into());
    hostile.state = "läuft\u{1b}[2J".into();
    let mut done = task(1, "completed", "true");
    done.outcome = Some(Outcome::Completed);
    vec![running, queued, failed, hostile, done]
}

fn worker(name: &str, state: &str) -> WorkerInfo {
    let up = state == "ready";
    let load = Load { cpus: 8, load_milli: 2_500, memory: 16 << 30, memory_available: 3 << 30 };
    WorkerInfo {
        id: WorkerId(Uuid::nil()),
        name: name.into(),
        state: state.into(),
        namespace: Namespace::default(),
        pool: "default".into(),
        slots: 8,
        busy: 3,
        agents: vec!["shell".into()],
        labels: BTreeMap::new(),
        containment: Containment::Cgroup,
        heartbeat_age_ms: 1_200,
        build: "ado".into(),
        load: up.then_some(load),
        rtt_us: up.then_some(1_400),
        holds: Vec::new(),
        ineligible: (!up).then(|| "it is not connected".into()),
        breaker: None,
        controller: None,
        deadline: None,
        desired: WorkerDesired::Active,
        desired_by: None,
    }
}

fn event(cursor: u64) -> SystemEvent {
    SystemEvent {
        cursor,
        time: Timestamp(NOW.0 - 3_000_000),
        kind: "task.submitted".into(),
        task: None,
        worker: None,
        text: format!("number {cursor} \u{1b}[2J"),
    }
}

fn tick(seconds: i64) -> Input {
    let link = Link::Up { rtt: Duration::from_micros(12_300), path: "192.0.2.7:4433".into() };
    Input::Tick { now: Timestamp(NOW.0 + seconds * 1_000_000), link }
}

fn model() -> Model {
    let mut model = Model::new("remote", NOW, true);
    update(&mut model, tick(0));
    for answer in [3, 9, 4, 14] {
        update(&mut model, Input::Answered(Duration::from_millis(answer)));
    }
    update(&mut model, Input::Tasks { tasks: tasks(), more: true });
    update(&mut model, Input::Workers(vec![worker("builder-2", "lost"), worker("builder-1", "ready")]));
    update(&mut model, Input::Events((1..=30).map(event).collect()));
    model
}

fn press(model: &mut Model, keys: &str) -> Vec<Effect> {
    keys.chars().flat_map(|c| update(model, Input::Key(Key::Char(c)))).collect()
}

fn drawn(model: &Model, width: u16, height: u16) -> ratatui::buffer::Buffer {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    terminal.draw(|frame| draw(model, frame)).unwrap();
    terminal.backend().buffer().clone()
}

/// The picture with its last line.
fn picture(model: &Model, width: u16, height: u16) -> String {
    let buffer = drawn(model, width, height);
    let text = plain(&buffer);
    let rows = buffer.content.chunks(width.into());
    let foot: String = rows.last().unwrap().iter().map(|cell| cell.symbol()).collect();
    format!("{text}\n{}", foot.trim_end())
}

fn selected(model: &Model) -> u128 {
    let (_, task) = model.selected().unwrap();
    task.0.as_u128() >> 64
}

#[test]
fn pictures() {
    let mut model = model();
    let mut grown = tasks();
    grown[0].next_offset = Offset(350);
    update(&mut model, tick(2));
    update(&mut model, Input::Tasks { tasks: grown, more: true });
    insta::assert_snapshot!("usual", picture(&model, 80, 24));
    insta::assert_snapshot!("tiny", picture(&model, 40, 10));
    insta::assert_snapshot!("large", picture(&model, 200, 60));
    press(&mut model, "l");
    update(&mut model, Input::Preview { task: id(5), lines: vec!["Compiling ado".into(), "Finished".into()] });
    insta::assert_snapshot!("preview", picture(&model, 80, 24));
    insta::assert_snapshot!("tiny preview", picture(&model, 40, 10));
    press(&mut model, "l?");
    insta::assert_snapshot!("help", picture(&model, 80, 24));
    press(&mut model, "x");
    update(&mut model, Input::Key(Key::Tab));
    update(&mut model, Input::Key(Key::Tab));
    insta::assert_snapshot!("events", picture(&model, 80, 24));
    let problem = "cannot reach 192.0.2.7:4433: \u{1b}[2Jtimed out".into();
    update(&mut model, Input::Tick { now: NOW, link: Link::Away { for_: Duration::from_secs(75), problem } });
    update(&mut model, Input::Failed { feed: Feed::Workers, why: "you may not list workers".into() });
    update(&mut model, Input::Key(Key::Tab));
    insta::assert_snapshot!("away", picture(&model, 80, 24));
}

#[test]
fn pictures_before_anything_is_known_and_with_nothing_to_show() {
    let mut model = Model::new("local", NOW, true);
    insta::assert_snapshot!("nothing known", picture(&model, 80, 16));
    update(&mut model, tick(0));
    update(&mut model, Input::Tasks { tasks: Vec::new(), more: false });
    update(&mut model, Input::Workers(Vec::new()));
    insta::assert_snapshot!("nothing there", picture(&model, 80, 16));
}

#[test]
fn what_is_old_is_grey_and_without_colours_there_are_none() {
    let styles = |model: &Model| -> Vec<_> {
        drawn(model, 100, 24).content.iter().map(|cell| (cell.fg, cell.bg, cell.modifier)).collect()
    };
    let mut live = model();
    assert!(styles(&live).iter().any(|(fg, ..)| *fg == Color::Green));
    assert!(styles(&live).iter().any(|(.., modifier)| modifier.contains(Modifier::REVERSED)), "the selected row");
    live.colour = false;
    assert!(styles(&live).iter().all(|(fg, bg, _)| (*fg, *bg) == (Color::Reset, Color::Reset)));

    let mut away = model();
    let link = Link::Away { for_: Duration::from_secs(5), problem: "lost".into() };
    update(&mut away, Input::Tick { now: NOW, link });
    assert!(styles(&away).iter().all(|(fg, ..)| *fg != Color::Green));
    let row = drawn(&away, 100, 24);
    let at = row.content.iter().position(|cell| cell.modifier.contains(Modifier::REVERSED)).unwrap();
    assert!(row.content[at].modifier.contains(Modifier::DIM), "the last known data are still there, and grey");
}

#[test]
fn the_selection_stays_with_its_task() {
    let mut model = model();
    assert_eq!(selected(&model), 5, "what goes on comes first");
    press(&mut model, "j");
    assert_eq!(selected(&model), 4);
    let mut more = tasks();
    more.push(task(9, "running", "new"));
    update(&mut model, Input::Tasks { tasks: more, more: false });
    assert_eq!((selected(&model), model.selected().unwrap().0), (4, 2));
    press(&mut model, "s");
    assert_eq!(selected(&model), 4);
    // When it is gone, the row stays.
    update(&mut model, Input::Tasks { tasks: vec![task(1, "running", "x")], more: false });
    assert_eq!(selected(&model), 1);
    update(&mut model, Input::Tasks { tasks: Vec::new(), more: false });
    assert_eq!(model.selected(), None);
    assert_eq!(press(&mut model, "jkGgprcla"), [], "there is nothing to do anything with");
    update(&mut model, Input::Tasks { tasks: tasks(), more: false });
    assert_eq!(update(&mut model, Input::Key(Key::End)), []);
    assert_eq!(update(&mut model, Input::Key(Key::Enter)), [Effect::Attach(model.selected().unwrap().1)]);
}

#[test]
fn keys_ask_for_what_they_say() {
    let mut model = model();
    assert_eq!(press(&mut model, "p"), [Effect::Desire(id(5), Desired::Paused)]);
    assert_eq!(press(&mut model, "r"), [Effect::Desire(id(5), Desired::Running)]);
    assert_eq!(press(&mut model, "c"), [], "it asks first");
    assert_eq!(model.mode, Mode::Confirm(id(5)));
    assert!(picture(&model, 80, 24).ends_with(&format!("cancel {} [nightly]? y/n", id(5).short())));
    // The question is about that task, whatever moves meanwhile.
    update(&mut model, Input::Tasks { tasks: vec![task(9, "running", "x"), tasks()[0].clone()], more: false });
    assert_eq!(press(&mut model, "y"), [Effect::Desire(id(5), Desired::Cancelled)]);
    assert_eq!((press(&mut model, "cq"), &model.mode), (vec![], &Mode::Normal), "anything else is no");
    update(&mut model, Input::Tasks { tasks: vec![tasks()[2].clone()], more: false });
    assert_eq!((press(&mut model, "c"), &model.mode), (vec![], &Mode::Normal));
    assert!(picture(&model, 80, 24).ends_with("is failed already"));
    assert_eq!(press(&mut model, "q"), [Effect::Quit]);
    press(&mut model, "/");
    assert_eq!(update(&mut model, Input::Key(Key::Interrupt)), [Effect::Quit], "whatever goes on");
    let mut workers = super::tests::model();
    update(&mut workers, Input::Key(Key::Tab));
    assert_eq!((workers.pane, press(&mut workers, "pcra")), (Pane::Workers, vec![]), "keys mean what is looked at");
}

#[test]
fn a_filter_is_typed_kept_and_dropped() {
    let mut model = model();
    assert_eq!(press(&mut model, "/q night"), [], "keys are text now");
    assert_eq!(model.view().len(), 0);
    for _ in 0.."q night".len() {
        update(&mut model, Input::Key(Key::Backspace));
    }
    press(&mut model, "NIGHT cargo");
    update(&mut model, Input::Key(Key::Enter));
    assert_eq!(model.view().len(), 1);
    press(&mut model, "/x");
    update(&mut model, Input::Key(Key::Escape));
    assert_eq!(model.filter, "NIGHT cargo", "what was there before");
    update(&mut model, Input::Key(Key::Escape));
    assert_eq!(model.view().len(), 5);
}

#[test]
fn the_preview_is_of_the_selected_task() {
    let mut model = model();
    assert_eq!(press(&mut model, "l"), [Effect::Preview(Some(id(5)))]);
    assert_eq!(press(&mut model, "j"), [Effect::Preview(Some(id(4)))]);
    // A late answer is about another task.
    update(&mut model, Input::Preview { task: id(5), lines: vec!["too late".into()] });
    assert!(!picture(&model, 80, 24).contains("too late"));
    update(&mut model, Input::Preview { task: id(4), lines: vec!["new".into()] });
    assert!(picture(&model, 80, 24).contains("new"));
    assert_eq!(press(&mut model, "l"), [Effect::Preview(None)]);
}

#[test]
fn throughput_is_what_logs_grow_by() {
    let mut model = model();
    let shown = |model: &Model| model.task(id(5)).unwrap().rate;
    assert_eq!(shown(&model), None);
    let mut grown = tasks();
    grown[0].next_offset = Offset(300);
    update(&mut model, tick(2));
    update(&mut model, Input::Tasks { tasks: grown.clone(), more: false });
    assert_eq!(shown(&model), Some(100.0));
    update(&mut model, tick(3));
    update(&mut model, Input::Tasks { tasks: grown, more: false });
    assert_eq!((shown(&model), model.task(id(3)).unwrap().rate), (Some(50.0), None));
    assert_eq!(model.records_per_second(), 50.0);
    let events = model.events_per_second();
    update(&mut model, tick(60));
    assert!(events > 0.0 && model.events_per_second() == 0.0);
}

#[test]
fn a_word_is_shown_for_a_while() {
    let mut model = model();
    update(&mut model, Input::Said { text: "pausing\u{1b}[2J".into(), error: false });
    assert!(picture(&model, 80, 24).ends_with("pausing\u{fffd}[2J"));
    update(&mut model, tick(5));
    assert!(model.notice.is_some());
    update(&mut model, tick(7));
    assert!(model.notice.is_none());
}

fn key() -> impl Strategy<Value = Key> {
    prop_oneof![
        4 => proptest::sample::select(vec!['j', 'k', 'p', 'r', 'c', 'y', 'n', '/', 's', 'l', '?', 'g', 'G', 'a', 'x', '漢'])
            .prop_map(Key::Char),
        4 => proptest::sample::select(vec![
            Key::Up, Key::Down, Key::PageUp, Key::PageDown, Key::Home, Key::End, Key::Enter, Key::Escape, Key::Tab,
            Key::BackTab, Key::Backspace,
        ]),
    ]
}

#[derive(Debug, Clone)]
enum Happens {
    Key(Key),
    Tasks(Vec<u128>),
    Workers(usize),
    Events(u64),
    Size(u16, u16),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => key().prop_map(Happens::Key),
        2 => proptest::collection::vec(1..30u128, 0..20).prop_map(Happens::Tasks),
        1 => (0..6usize).prop_map(Happens::Workers),
        1 => (0..300u64).prop_map(Happens::Events),
        2 => (0..130u16, 0..40u16).prop_map(|(width, height)| Happens::Size(width, height)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_there_is_a_picture_and_nothing_steers_the_terminal(
        all in proptest::collection::vec(happens(), 0..40),
    ) {
        let (mut model, mut size) = (model(), (80, 24));
        for happens in all {
            match happens {
                Happens::Key(key) => drop(update(&mut model, Input::Key(key))),
                Happens::Tasks(numbers) => {
                    let tasks = numbers.iter().map(|n| task(*n, "running", "echo \u{1b}]0;\u{7}\u{202e}")).collect();
                    update(&mut model, Input::Tasks { tasks, more: false });
                }
                Happens::Workers(count) => {
                    update(&mut model, Input::Workers((0..count).map(|n| worker(&n.to_string(), "ready")).collect()));
                }
                Happens::Events(count) => drop(update(&mut model, Input::Events((0..count).map(event).collect()))),
                Happens::Size(width, height) => size = (width, height),
            }
            let view = model.view();
            prop_assert_eq!(model.selected().is_some(), !view.is_empty());
            if let Some((row, id)) = model.selected() {
                prop_assert_eq!(view[row].info.id, id);
            }
            let buffer = drawn(&model, size.0, size.1);
            let bad = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
            prop_assert!(!buffer.content.iter().any(|cell| cell.symbol().contains(bad)));
        }
    }
}
