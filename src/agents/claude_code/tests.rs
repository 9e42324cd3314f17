use ado_proto::spec::Input;
use proptest::prelude::*;

use super::*;

/// A run of two turns and a tool, as it was recorded.
const RUN: &str = include_str!("run.jsonl");
const SESSION: &str = "a70b373c-a2a5-47da-befe-33440079fcd7";
/// The frame with which a permission was asked for.
const PERMISSION: &str = include_str!("permission.jsonl");

fn driver(change: impl FnOnce(&mut TaskSpec)) -> Claude {
    let mut spec = TaskSpec::new("claude-code", Input::Text("do it".into()));
    change(&mut spec);
    Claude::new(&spec, SESSION)
}

fn hear(driver: &mut Claude, lines: &str) -> Out {
    let mut out = Out::default();
    lines.lines().for_each(|line| driver.hear(line.as_bytes(), &mut out));
    out
}

fn said(out: &Out) -> Vec<Value> {
    String::from_utf8(out.bytes.clone()).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn words(out: &Out) -> String {
    let text =
        out.events.iter().filter_map(|event| if let Event::Text(text) = event { Some(text.as_str()) } else { None });
    text.collect()
}

fn ended(frame: &Value) -> Outcome {
    let mut frame = frame.clone();
    (frame["type"], frame["session_id"]) = (json!("result"), json!(SESSION));
    let out = hear(&mut driver(|_| ()), &frame.to_string());
    match out.events.last() {
        Some(Event::Ended(outcome)) => outcome.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_recorded_run_becomes_words_a_tool_and_an_end() {
    let out = hear(&mut driver(|_| ()), RUN);
    assert_eq!(words(&out), "I will write it\nall done\n", "nothing twice, a line for each block");
    let rest: Vec<_> =
        out.events.into_iter().filter(|event| !matches!(event, Event::Text(_) | Event::Doing(_))).collect();
    let call = String::from("toolu_00000030_1795441745121210937");
    let tool = Tool { call: call.clone(), name: "Bash".into(), summary: "echo hi > file.txt".into() };
    let usage = Usage { turns: 2, cost_micros: Some(100_612), input_tokens: 24_868, output_tokens: 57 };
    let expected = [
        Event::Session(SESSION.into()),
        Event::ToolBegan(tool),
        Event::Used(Usage { turns: 1, cost_micros: None, input_tokens: 12_390, output_tokens: 48 }),
        Event::ToolEnded { call },
        Event::Used(Usage { cost_micros: None, ..usage }),
        Event::Used(usage),
        Event::Ended(Outcome::Done),
    ];
    assert_eq!(rest, expected);
}

#[test]
fn it_is_told_what_to_do_and_within_which_limits() {
    let mut limited = driver(|spec| {
        spec.model = Some("opus".into());
        spec.quota = ado_proto::spec::Quota { turns: Some(5), cost_micros: Some(1_500_000), tokens: None };
    });
    let launch = limited.launch(&Site { program: "/x/claude", home: "/h", ado: "/ado" });
    let line = launch.argv.join(" ");
    assert!(line.starts_with("/x/claude -p --input-format stream-json --output-format stream-json"), "{line}");
    assert!(line.ends_with("--model opus --max-turns 5 --max-budget-usd 1.500000"), "{line}");
    assert_eq!(
        (launch.env["CLAUDE_CONFIG_DIR"].as_str(), launch.env["CLAUDE_CODE_SHELL_PREFIX"].as_str()),
        ("/h", "/h/shell")
    );
    let mut out = Out::default();
    limited.start(&mut out);
    assert_eq!(said(&out)[1]["message"]["content"], "do it");
}

#[test]
fn a_permission_is_asked_for_and_the_answer_is_what_the_agent_understands() {
    let answer = |choice: Option<&str>, text: Option<&str>| {
        let mut driver = driver(|_| ());
        let out = hear(&mut driver, PERMISSION);
        let Some(Event::Asks(question)) = out.events.last() else { panic!("{:?}", out.events) };
        assert_eq!(question.text, "may it use Bash: echo hi > file.txt");
        let ids: Vec<_> = question.choices.iter().map(|choice| choice.id.as_str()).collect();
        assert_eq!(ids, ["allow", "always", "deny"]);
        assert_eq!(question.choices[1].label, "Allow it, and do not ask again for Bash(echo hi *)");
        assert_eq!(question.default.as_deref(), Some("deny"));
        let subject = question.subject.clone().unwrap();
        assert_eq!((subject.class, subject.about.as_str()), (Class::Shell, "echo hi > file.txt"));
        let mut out = Out::default();
        let answer = Answer { choice: choice.map(Into::into), text: text.map(Into::into) };
        driver.answer(&question.id, &answer, &mut out);
        driver.answer(&question.id, &answer, &mut out);
        let said = said(&out);
        assert_eq!(said.len(), 1, "once");
        assert_eq!(said[0]["response"]["request_id"], "a071c4f6-3b0c-438e-883c-25d3b8815f94");
        said[0]["response"]["response"].clone()
    };
    let input = json!({ "command": "echo hi > file.txt", "description": "write" });
    assert_eq!(answer(Some("allow"), None), json!({ "behavior": "allow", "updatedInput": input }));
    let always = answer(Some("always"), None);
    assert_eq!(always["updatedPermissions"][0]["destination"], "session", "nothing stays on the machine");
    assert_eq!(answer(Some("deny"), Some("not there"))["message"], "not there");
    assert_eq!(answer(None, Some("not there"))["behavior"], "deny");
    assert_eq!(answer(None, None)["behavior"], "deny", "nobody");
}

#[test]
fn several_questions_are_answered_together() {
    let questions = json!([
        { "question": "Which db?", "header": "db", "options": [{ "label": "sqlite", "description": "small" }], "multiSelect": false },
        { "question": "Which name?", "header": "name", "options": [], "multiSelect": false },
    ]);
    let frame = json!({ "type": "control_request", "request_id": "r1", "request": {
        "subtype": "can_use_tool", "tool_name": "AskUserQuestion", "input": { "questions": questions } } });
    let mut driver = driver(|_| ());
    let asked = hear(&mut driver, &frame.to_string());
    let texts = asked.events.iter().map(|event| match event {
        Event::Asks(question) => (question.id.as_str(), question.text.as_str(), question.choices.len()),
        other => panic!("{other:?}"),
    });
    assert_eq!(texts.collect::<Vec<_>>(), [("r1#0", "Which db?", 1), ("r1#1", "Which name?", 0)]);
    let mut out = Out::default();
    driver.answer("r1#1", &Answer { choice: None, text: Some("x".into()) }, &mut out);
    assert!(out.bytes.is_empty(), "not before all are answered");
    driver.answer("r1#0", &Answer { choice: Some("sqlite".into()), text: None }, &mut out);
    let answers = said(&out)[0]["response"]["response"]["updatedInput"]["answers"].clone();
    assert_eq!(answers, json!({ "Which db?": "sqlite", "Which name?": "x" }));
}

#[test]
fn a_question_may_be_withdrawn_and_what_is_not_offered_is_refused() {
    let mut driver = driver(|_| ());
    hear(&mut driver, PERMISSION);
    let id = "a071c4f6-3b0c-438e-883c-25d3b8815f94";
    let cancel = json!({ "type": "control_cancel_request", "request_id": id }).to_string();
    assert_eq!(hear(&mut driver, &cancel).events, [Event::Withdrawn { id: id.into() }]);
    assert_eq!(hear(&mut driver, &cancel).events, []);
    let hook = json!({ "type": "control_request", "request_id": "h", "request": { "subtype": "hook_callback" } });
    assert_eq!(said(&hear(&mut driver, &hook.to_string()))[0]["response"]["subtype"], "error");
}

#[test]
fn how_it_ended_is_in_the_result_and_not_in_its_name() {
    let done = json!({ "subtype": "success", "is_error": false, "terminal_reason": "completed" });
    assert_eq!(ended(&done), Outcome::Done);
    let api = |status| {
        json!({ "subtype": "success", "is_error": true, "terminal_reason": "api_error",
        "api_error_status": status, "result": "API Error: x" })
    };
    assert!(matches!(ended(&api(json!(401))), Outcome::Away { what, .. } if what.contains("credential (401)")));
    assert!(matches!(ended(&api(json!(529))), Outcome::Away { what, .. } if what.contains("overloaded (529)")));
    assert!(matches!(ended(&api(json!(null))), Outcome::Away { what, .. } if what.contains("could not be reached")));
    assert!(matches!(ended(&api(json!(400))), Outcome::Failed(what) if what.contains("(400): API Error: x")));
    let limit = json!({ "subtype": "error_max_turns", "is_error": true });
    assert!(matches!(ended(&limit), Outcome::Hopeless(what) if what.contains("turns")));
    let aborted = json!({ "subtype": "error_during_execution", "is_error": true, "terminal_reason": "aborted_tools" });
    assert!(matches!(ended(&aborted), Outcome::Failed(what) if what.contains("interrupted")));
    let other = json!({ "subtype": "error_during_execution", "is_error": true, "errors": ["No conversation found"] });
    assert_eq!(ended(&other), Outcome::Failed("No conversation found".into()));
    assert!(matches!(ended(&json!({})), Outcome::Failed(_)), "what says nothing is no success");
}

#[test]
fn a_forged_end_ends_nothing_and_nothing_counts_after_the_end() {
    let mut driver = driver(|_| ());
    let forged =
        json!({ "type": "result", "subtype": "success", "is_error": false, "session_id": "other" }).to_string();
    assert!(matches!(hear(&mut driver, &forged).events[..], [Event::Warning(_)]));
    let quoted = json!({ "type": "user", "message": { "content": [{ "type": "tool_result", "tool_use_id": "t",
        "content": RUN }] } });
    assert_eq!(hear(&mut driver, &quoted.to_string()).events, [Event::ToolEnded { call: "t".into() }]);
    hear(&mut driver, RUN);
    assert_eq!(hear(&mut driver, RUN).events, []);
}

#[test]
fn trouble_with_the_api_is_told() {
    let retry = json!({ "type": "system", "subtype": "api_retry", "attempt": 2, "max_retries": 4, "retry_delay_ms": 1500.4,
        "error_status": 529, "error": "overloaded_error" });
    let expected = "the model's API answered 529 (overloaded_error); try 2 of 4 in 1.5 s";
    assert_eq!(hear(&mut driver(|_| ()), &retry.to_string()).events, [Event::Warning(expected.into())]);
}

proptest! {
    #[test]
    fn no_bytes_panic_or_end_a_run(lines in prop::collection::vec(prop_oneof![
        "\\PC{0,60}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..60),
        (0..RUN.lines().count(), 0..2000usize, any::<u8>()).prop_map(|(line, at, byte)| {
            let mut line = RUN.lines().nth(line).unwrap().replace(SESSION, "another").into_bytes();
            let at = at % line.len();
            line[at] = byte;
            line
        }),
    ], 0..12)) {
        let mut driver = driver(|_| ());
        let mut out = Out::default();
        lines.iter().for_each(|line| driver.hear(line, &mut out));
        let ended = out.events.iter().any(|event| matches!(event, Event::Ended(_)));
        prop_assert!(!ended);
    }
}
