use ado_proto::spec::Input;
use proptest::prelude::*;

use super::*;

/// What gemini-cli said in a run with a permission and a tool, as it was recorded.
const RUN: &str = include_str!("gemini.jsonl");
const KEY: &str = "5f4d";

fn driver() -> Acp {
    let mut acp = Acp::new(&TaskSpec::new("gemini-cli", Input::Text("do it".into())), KEY, gemini);
    acp.works_in("/w");
    acp
}

/// The recording, as if it had been asked by this driver.
fn recorded() -> Vec<String> {
    let ours = |number: u64| ["hello", "new", "prompt"][usize::try_from(number).unwrap() - 1];
    let mut frames = Vec::new();
    for line in RUN.lines() {
        let mut frame: Value = serde_json::from_str(line).unwrap();
        if let (Some(number), None) = (frame["id"].as_u64(), frame["method"].as_str()) {
            frame["id"] = json!(format!("{KEY}/{}", ours(number)));
        }
        frames.push(frame.to_string());
    }
    frames
}

fn said(out: &Out) -> Vec<Value> {
    String::from_utf8(out.bytes.clone()).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn hear(driver: &mut Acp, frame: &Value) -> Out {
    let mut out = Out::default();
    driver.hear(frame.to_string().as_bytes(), &mut out);
    out
}

/// A driver whose session has begun.
fn begun() -> Acp {
    let mut driver = driver();
    for frame in recorded().iter().take(2) {
        driver.hear(frame.as_bytes(), &mut Out::default());
    }
    assert!(driver.session.is_some());
    driver
}

#[test]
fn a_recorded_run_is_begun_asked_about_and_ended() {
    let mut driver = driver();
    let mut out = Out::default();
    driver.start(&mut out);
    for frame in recorded() {
        driver.hear(frame.as_bytes(), &mut out);
        let asked =
            out.events.iter().find_map(|event| if let Event::Asks(question) = event { Some(question) } else { None });
        if let Some(question) = asked.cloned().filter(|question| driver.asks.contains_key(&question.id)) {
            assert_eq!(question.text, "may it use execute: echo hi > file.txt");
            let ids: Vec<_> = question.choices.iter().map(|choice| choice.id.as_str()).collect();
            assert_eq!(ids, ["proceed_always", "proceed_once", "cancel"]);
            assert_eq!(question.default.as_deref(), Some("cancel"));
            driver.answer(&question.id, &Answer { choice: Some("proceed_once".into()), text: None }, &mut out);
        }
    }
    let said = said(&out);
    let methods: Vec<_> = said.iter().filter_map(|frame| frame["method"].as_str()).collect();
    assert_eq!(methods, ["initialize", "session/new", "session/prompt"]);
    assert_eq!((&said[1]["params"]["cwd"], &said[2]["params"]["prompt"][0]["text"]), (&json!("/w"), &json!("do it")));
    assert_eq!(
        said[3],
        json!({ "jsonrpc": "2.0", "id": 0, "result": { "outcome": { "outcome": "selected", "optionId": "proceed_once" } } })
    );
    let words: String = out
        .events
        .iter()
        .filter_map(|event| if let Event::Text(text) = event { Some(text.as_str()) } else { None })
        .collect();
    assert_eq!(words, "I will write it\nall done\n");
    let tools = out
        .events
        .iter()
        .filter(|event| matches!(event, Event::ToolBegan(tool) if tool.summary == "echo hi > file.txt"));
    assert_eq!(tools.count(), 1, "told once");
    let usage = Usage { turns: 2, cost_micros: None, input_tokens: 23_982, output_tokens: 62 };
    assert_eq!(out.events[out.events.len() - 2..], [Event::Used(usage), Event::Ended(Outcome::Done)]);
}

#[test]
fn what_it_may_not_ask_is_answered_at_once() {
    let mut driver = begun();
    let out = hear(&mut driver, &json!({ "jsonrpc": "2.0", "id": 7, "method": "cursor/create_plan", "params": {} }));
    assert_eq!((said(&out)[0]["id"].clone(), said(&out)[0]["error"]["code"].clone()), (json!(7), json!(NOT_FOUND)));
    let form = json!({ "jsonrpc": "2.0", "id": "f", "method": "elicitation/create", "params": {
        "message": "Which db?", "requestedSchema": { "properties": { "db": { "enum": ["sqlite", "postgres"] } } } } });
    let out = hear(&mut driver, &form);
    let [Event::Asks(question)] = &out.events[..] else { panic!("{:?}", out.events) };
    assert_eq!((question.text.as_str(), question.choices.len()), ("Which db?", 2));
    let mut answered = Out::default();
    driver.answer(&question.id, &Answer { choice: Some("sqlite".into()), text: None }, &mut answered);
    assert_eq!(said(&answered)[0]["result"], json!({ "action": "accept", "content": { "db": "sqlite" } }));
}

#[test]
fn always_is_offered_only_for_the_session() {
    let ask = |name: &str| {
        let frame = json!({ "jsonrpc": "2.0", "id": 1, "method": "session/request_permission", "params": { "options": [
            { "optionId": "always", "name": name, "kind": "allow_always" },
            { "optionId": "once", "name": "Allow", "kind": "allow_once" },
            { "optionId": "never", "name": "Never", "kind": "reject_always" }], "toolCall": { "kind": "edit", "title": "a" } } });
        let out = hear(&mut begun(), &frame);
        let [Event::Asks(question)] = &out.events[..] else { panic!("{:?}", out.events) };
        question.choices.iter().map(|choice| choice.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ask("Always allow"), ["once"]);
    assert_eq!(ask("Allow for this session"), ["always", "once"]);
}

#[test]
fn a_mode_in_which_nobody_is_asked_is_left() {
    let mut driver = driver();
    let new = json!({ "jsonrpc": "2.0", "id": format!("{KEY}/new"), "result": { "sessionId": "s",
        "modes": { "currentModeId": "auto", "availableModes": [{ "id": "auto" }, { "id": "default" }] } } });
    let said = said(&hear(&mut driver, &new));
    assert_eq!((&said[0]["method"], &said[0]["params"]["modeId"]), (&json!("session/set_mode"), &json!("default")));
    assert_eq!(said[1]["method"], "session/prompt");
}

#[test]
fn how_it_ended_is_what_the_prompt_was_answered() {
    let ended = |answer: Value| {
        let mut frame = json!({ "jsonrpc": "2.0", "id": format!("{KEY}/prompt") });
        for (key, value) in answer.as_object().unwrap() {
            frame[key] = value.clone();
        }
        match hear(&mut begun(), &frame).events.pop() {
            Some(Event::Ended(outcome)) => outcome,
            other => panic!("{other:?}"),
        }
    };
    let stop = |reason: &str| json!({ "result": { "stopReason": reason } });
    assert_eq!(ended(stop("end_turn")), Outcome::Done);
    assert!(matches!(ended(stop("cancelled")), Outcome::Failed(_)));
    assert!(matches!(ended(stop("max_turn_requests")), Outcome::Hopeless(_)));
    assert!(matches!(ended(json!({ "result": {} })), Outcome::Failed(_)), "what says nothing is no success");
    let error = |code: i64, message: &str| json!({ "error": { "code": code, "message": message } });
    assert!(matches!(ended(error(401, "bad key")), Outcome::Away { .. }));
    assert!(matches!(ended(error(-32603, "got status: 429 Too Many Requests")), Outcome::Away { .. }));
    assert!(matches!(ended(error(-32000, "Authentication required")), Outcome::Away { .. }));
    assert!(matches!(ended(error(-32603, "it broke")), Outcome::Failed(_)));
}

#[test]
fn who_does_not_know_the_ids_forges_no_end() {
    let mut driver = begun();
    for id in [json!(3), json!("prompt"), json!("/prompt"), json!("other/prompt"), json!(null)] {
        let out = hear(&mut driver, &json!({ "jsonrpc": "2.0", "id": id, "result": { "stopReason": "end_turn" } }));
        assert_eq!(out.events, [], "{id}");
    }
    let other = json!({ "jsonrpc": "2.0", "method": "session/update", "params": { "sessionId": "other",
        "update": { "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": "x" } } } });
    assert_eq!(hear(&mut driver, &other).events, []);
}

proptest! {
    #[test]
    fn no_bytes_panic_or_end_a_run(lines in prop::collection::vec(prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        (0..RUN.lines().count(), 0..2000usize, any::<u8>()).prop_map(|(line, at, byte)| {
            let mut line = RUN.lines().nth(line).unwrap().as_bytes().to_vec();
            let at = at % line.len();
            line[at] = byte;
            line
        }),
    ], 0..12)) {
        let mut driver = begun();
        let mut out = Out::default();
        lines.iter().for_each(|line| driver.hear(line, &mut out));
        let ended = out.events.iter().any(|event| matches!(event, Event::Ended(_)));
        prop_assert!(!ended);
    }
}
