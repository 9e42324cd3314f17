//! `claude-code`: the CLI of Claude Code, by its own protocol: JSON objects, one a line, both ways.
//!
//! Seen with 2.1.330. The process takes prompts and answers on stdin and says everything on stdout; the frame `result`
//! ends a run, whatever the process's exit code is. Keys come in any order, and kinds that are not known are passed by.

use std::collections::BTreeMap;

use ado_proto::record::{Answer, AskKind, Choice};
use ado_proto::spec::{TaskSpec, Usage};
use serde_json::{Value, json};

use super::event::{Class, Event, Out, Outcome, Question, Subject, Tool, one_line, text_of};
use super::{Driver, File, Launch, Real, Site};

/// How it is found, and what it needs.
pub(super) const REAL: Real = Real {
    name: "claude-code",
    program: "claude",
    credentials: &["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"],
    settings: &["ANTHROPIC_BASE_URL", "ANTHROPIC_MODEL"],
    login: "CLAUDE_CONFIG_DIR",
    package: "@anthropic-ai/claude-code",
    driver: |spec, session| Box::new(Claude::new(spec, session)),
};

/// Tries of one request to the API: about half a minute in all. Whoever is away for longer is left alone by the mesh, and
/// the task waits where it costs nothing.
const API_TRIES: &str = "4";
/// Longest summary of a tool call, bytes.
const SUMMARY: usize = 200;
/// Choices of a permission.
const ALLOW: &str = "allow";
const ALWAYS: &str = "always";
const DENY: &str = "deny";

/// One run.
#[derive(Debug)]
struct Claude {
    prompt: String,
    model: Option<String>,
    turns: Option<u32>,
    cost_micros: Option<u64>,
    session: String,
    /// The message whose words came piece by piece: they are not said again when it comes whole.
    streamed: Option<String>,
    /// The message whose pieces come now.
    message: Option<String>,
    /// Whether the last word ended a line.
    at_line_start: bool,
    asks: BTreeMap<String, Pending>,
    /// By the answers of its model so far, its helpers' too.
    usage: Usage,
    /// The API's last failure that was tried again.
    trouble: Option<(Option<u64>, String)>,
    ended: bool,
}

/// What is asked and not answered.
#[derive(Debug)]
enum Pending {
    Permission { input: Value, suggestions: Value },
    Questions { input: Value, given: BTreeMap<String, String>, left: usize },
}

impl Claude {
    fn new(spec: &TaskSpec, session: &str) -> Self {
        Self {
            prompt: spec.input.summary(),
            model: spec.model.clone(),
            turns: spec.quota.turns,
            cost_micros: spec.quota.cost_micros,
            session: session.into(),
            streamed: None,
            message: None,
            at_line_start: true,
            asks: BTreeMap::new(),
            usage: Usage::default(),
            trouble: None,
            ended: false,
        }
    }
}

impl Driver for Claude {
    fn launch(&self, site: &Site<'_>) -> Launch {
        let mut argv: Vec<String> = vec![site.program.into()];
        argv.extend(
            [
                "-p",
                "--input-format",
                "stream-json",
                "--output-format",
                "stream-json",
                "--verbose",
                "--include-partial-messages",
                "--permission-prompt-tool",
                "stdio",
                "--session-id",
                &self.session,
            ]
            .map(String::from),
        );
        if let Some(model) = &self.model {
            argv.extend(["--model".into(), model.clone()]);
        }
        if let Some(turns) = self.turns {
            argv.extend(["--max-turns".into(), turns.to_string()]);
        }
        if let Some(micros) = self.cost_micros {
            argv.extend(["--max-budget-usd".into(), format!("{:.6}", micros as f64 / 1e6)]);
        }
        let shell = format!("{}/shell", site.home);
        let env = [
            ("CLAUDE_CONFIG_DIR", site.home),
            ("CLAUDE_CODE_SHELL_PREFIX", &shell),
            ("CLAUDE_CODE_MAX_RETRIES", API_TRIES),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
            ("DISABLE_AUTOUPDATER", "1"),
            ("DISABLE_TELEMETRY", "1"),
            ("DISABLE_ERROR_REPORTING", "1"),
        ];
        Launch {
            argv,
            env: env.map(|(name, value)| (name.into(), value.into())).into(),
            // Called as `shell 'all of a command line'`.
            files: vec![File::program("shell", site.tool("/bin/bash -c \"$1\""))],
            path_first: None,
        }
    }

    fn start(&mut self, out: &mut Out) {
        let hello = json!({ "type": "control_request", "request_id": "ado-hello",
            "request": { "subtype": "initialize", "hooks": null } });
        out.frame(&hello);
        out.frame(&json!({ "type": "user", "message": { "role": "user", "content": self.prompt },
            "parent_tool_use_id": null, "session_id": "" }));
    }

    fn hear(&mut self, line: &[u8], out: &mut Out) {
        if self.ended || line.trim_ascii().is_empty() {
            return;
        }
        let frame = match serde_json::from_slice::<Value>(line) {
            Ok(frame) if frame.is_object() => frame,
            Ok(_) | Err(_) => return out.event(Event::Stray(line.to_vec())),
        };
        match frame["type"].as_str() {
            Some("system") => self.system(&frame, out),
            Some("stream_event") => self.piece(&frame, out),
            Some("assistant") => self.said(&frame, out),
            Some("user") => Self::heard(&frame, out),
            Some("control_request") => self.asked(&frame, out),
            Some("control_cancel_request") => self.withdrawn(&frame, out),
            Some("result") => self.result(&frame, out),
            _ => {}
        }
    }

    fn answer(&mut self, id: &str, answer: &Answer, out: &mut Out) {
        // Of several questions in one request each has its own id.
        let request = id.split_once('#').map_or(id, |(request, _)| request);
        let response = match self.asks.get_mut(request) {
            None => return,
            Some(Pending::Permission { input, suggestions }) => permitted(answer, input, suggestions),
            Some(Pending::Questions { input, given, left }) => {
                let index = id.split_once('#').and_then(|(_, index)| index.parse::<usize>().ok()).unwrap_or(0);
                let question = input["questions"][index]["question"].as_str().unwrap_or_default().to_owned();
                let words = answer.text.clone().or_else(|| answer.choice.clone());
                if let Some(words) = words {
                    given.insert(question, words);
                }
                *left = left.saturating_sub(1);
                if *left > 0 {
                    return;
                }
                let mut input = input.clone();
                input["answers"] = json!(given);
                json!({ "behavior": "allow", "updatedInput": input })
            }
        };
        self.asks.remove(request);
        out.frame(&json!({ "type": "control_response",
            "response": { "subtype": "success", "request_id": request, "response": response } }));
    }

    fn session_files(&self) -> &'static [&'static str] {
        &["projects"]
    }
}

impl Claude {
    fn system(&mut self, frame: &Value, out: &mut Out) {
        match frame["subtype"].as_str() {
            Some("init") => {
                if let Some(session) = frame["session_id"].as_str() {
                    out.event(Event::Session(session.into()));
                }
                let model = frame["model"].as_str().unwrap_or("a model");
                out.event(Event::Doing(one_line(&format!("working with {model}"), SUMMARY)));
            }
            Some("api_retry") => {
                let status = frame["error_status"].as_u64();
                let error = text_of(&frame["error"]);
                let (attempt, most) = (frame["attempt"].as_u64().unwrap_or(0), frame["max_retries"].as_u64());
                let wait = frame["retry_delay_ms"].as_f64().unwrap_or(0.0) / 1000.0;
                let what = match status {
                    Some(status) => format!("answered {status} ({error})"),
                    None => format!("did not answer ({error})"),
                };
                self.trouble = Some((status, error));
                let most = most.map_or(String::new(), |most| format!(" of {most}"));
                let text = format!("the model's API {what}; try {attempt}{most} in {wait:.1} s");
                out.event(Event::Warning(one_line(&text, 400)));
            }
            Some("permission_denied") => {
                let tool = frame["tool_name"].as_str().unwrap_or("a tool");
                let message = frame["message"].as_str().unwrap_or_default();
                out.event(Event::Warning(one_line(&format!("{tool} was not permitted: {message}"), 400)));
            }
            _ => {}
        }
    }

    /// A piece of a message. What helpers of the agent say among themselves is not its answer.
    fn piece(&mut self, frame: &Value, out: &mut Out) {
        let event = &frame["event"];
        if event["type"] == "message_delta" {
            self.usage = self.usage.and(tokens(&event["usage"], 1));
            out.event(Event::Used(self.usage));
        }
        if !frame["parent_tool_use_id"].is_null() {
            return;
        }
        match event["type"].as_str() {
            Some("message_start") => self.message = event["message"]["id"].as_str().map(Into::into),
            Some("content_block_delta") if event["delta"]["type"] == "text_delta" => {
                if let Some(text) = event["delta"]["text"].as_str() {
                    self.streamed.clone_from(&self.message);
                    self.text(text, out);
                }
            }
            Some("content_block_start") if event["content_block"]["type"] == "thinking" => {
                out.event(Event::Doing("thinking".into()));
            }
            Some("content_block_stop") => self.end_line(out),
            _ => {}
        }
    }

    fn text(&mut self, text: &str, out: &mut Out) {
        if !text.is_empty() {
            self.at_line_start = text.ends_with('\n');
            out.event(Event::Text(text.into()));
        }
    }

    fn end_line(&mut self, out: &mut Out) {
        if !self.at_line_start {
            self.text("\n", out);
        }
    }

    /// A whole block of a message.
    fn said(&mut self, frame: &Value, out: &mut Out) {
        let (message, own) = (&frame["message"], frame["parent_tool_use_id"].is_null());
        // The client makes messages up, too: what they say is in the result.
        let synthetic = message["model"] == "<synthetic>";
        let streamed = self.streamed.is_some() && self.streamed.as_deref() == message["id"].as_str();
        for block in message["content"].as_array().into_iter().flatten() {
            match block["type"].as_str() {
                Some("text") if own && !synthetic && !streamed => {
                    self.text(block["text"].as_str().unwrap_or_default(), out);
                    self.end_line(out);
                }
                Some("tool_use") => {
                    self.end_line(out);
                    let name = block["name"].as_str().unwrap_or("a tool");
                    out.event(Event::ToolBegan(Tool {
                        call: block["id"].as_str().unwrap_or_default().into(),
                        name: one_line(name, SUMMARY),
                        summary: one_line(&about(&block["input"]), SUMMARY),
                    }));
                }
                _ => {}
            }
        }
    }

    fn heard(frame: &Value, out: &mut Out) {
        for block in frame["message"]["content"].as_array().into_iter().flatten() {
            if block["type"] == "tool_result" {
                let call = block["tool_use_id"].as_str().unwrap_or_default().into();
                out.event(Event::ToolEnded { call });
            }
        }
    }

    fn asked(&mut self, frame: &Value, out: &mut Out) {
        let (Some(id), request) = (frame["request_id"].as_str(), &frame["request"]) else { return };
        if request["subtype"] != "can_use_tool" {
            // Nothing it could want of us was offered.
            let what = request["subtype"].as_str().unwrap_or("that");
            out.frame(&json!({ "type": "control_response", "response": { "subtype": "error", "request_id": id,
                "error": format!("not offered: {}", one_line(what, 100)) } }));
            return;
        }
        let tool = request["tool_name"].as_str().unwrap_or_default();
        let input = request["input"].clone();
        if tool == "AskUserQuestion" {
            return self.questions(id, input, out);
        }
        let suggestions = request["permission_suggestions"].clone();
        let mut choices = vec![choice(ALLOW, "Allow it this time".into()), choice(DENY, "Do not allow it".into())];
        if let Some(rules) = rules_of(&suggestions) {
            choices.insert(1, choice(ALWAYS, format!("Allow it, and do not ask again for {rules}")));
        }
        out.event(Event::Asks(Question {
            id: id.into(),
            kind: AskKind::Permission { tool: one_line(tool, SUMMARY) },
            subject: Some(Subject { tool: tool.into(), class: class(tool), about: about(&input) }),
            text: one_line(&format!("may it use {tool}: {}", about(&input)), 1000),
            detail: input.clone(),
            choices,
            free_text: true,
            default: Some(DENY.into()),
        }));
        self.asks.insert(id.into(), Pending::Permission { input, suggestions });
    }

    /// Each question of a request is one of its own for people.
    fn questions(&mut self, id: &str, input: Value, out: &mut Out) {
        let questions = input["questions"].as_array().cloned().unwrap_or_default();
        for (index, question) in questions.iter().enumerate() {
            let options = question["options"].as_array().into_iter().flatten();
            let choices = options.filter_map(|option| {
                let label = option["label"].as_str()?;
                let more = option["description"].as_str().filter(|more| !more.is_empty());
                let shown = more.map_or_else(|| label.to_owned(), |more| format!("{label}: {more}"));
                Some(choice(label, one_line(&shown, 500)))
            });
            out.event(Event::Asks(Question {
                id: format!("{id}#{index}"),
                kind: AskKind::Question,
                subject: None,
                text: one_line(question["question"].as_str().unwrap_or("what now?"), 1000),
                detail: question.clone(),
                choices: choices.collect(),
                free_text: true,
                default: None,
            }));
        }
        let left = questions.len();
        self.asks.insert(id.into(), Pending::Questions { input, given: BTreeMap::new(), left });
        if left == 0 {
            self.answer(id, &Answer { choice: None, text: None }, out);
        }
    }

    fn withdrawn(&mut self, frame: &Value, out: &mut Out) {
        let Some(id) = frame["request_id"].as_str() else { return };
        match self.asks.remove(id) {
            None => {}
            Some(Pending::Permission { .. }) => out.event(Event::Withdrawn { id: id.into() }),
            Some(Pending::Questions { input, .. }) => {
                let count = input["questions"].as_array().map_or(0, Vec::len);
                (0..count).for_each(|index| out.event(Event::Withdrawn { id: format!("{id}#{index}") }));
            }
        }
    }

    /// The end, if it is the end of this conversation: whoever else gets hold of stdout does not know its name.
    fn result(&mut self, frame: &Value, out: &mut Out) {
        if frame["session_id"].as_str() != Some(&self.session) {
            return out.event(Event::Warning("a result of another conversation was passed by".into()));
        }
        self.end_line(out);
        out.event(Event::Used(used(frame)));
        out.event(Event::Ended(self.outcome(frame)));
        self.ended = true;
    }

    fn outcome(&self, frame: &Value) -> Outcome {
        let (subtype, reason) = (frame["subtype"].as_str(), frame["terminal_reason"].as_str());
        let is_error = frame["is_error"].as_bool().unwrap_or(subtype != Some("success"));
        let words = || {
            let errors = frame["errors"].as_array().into_iter().flatten().map(text_of).collect::<Vec<_>>().join("; ");
            let said = text_of(&frame["result"]);
            one_line(if errors.is_empty() { &said } else { &errors }, 1000)
        };
        match (subtype, reason) {
            (Some("error_max_turns"), _) | (_, Some("max_turns")) => {
                let turns = self.turns.map_or(String::new(), |turns| format!(" of {turns}"));
                Outcome::Hopeless(format!("its limit{turns} turns is used up"))
            }
            (Some("error_max_budget_usd"), _) | (_, Some("budget_exhausted")) => {
                let cost = self.cost_micros.map_or(String::new(), |micros| format!(" of ${}", micros as f64 / 1e6));
                Outcome::Hopeless(format!("its limit{cost} of cost is used up"))
            }
            (_, Some("api_error")) => {
                let status = frame["api_error_status"].as_u64();
                let last = self.trouble.as_ref();
                Outcome::of_api(status.or_else(|| last.and_then(|(status, _)| *status)), &words())
            }
            (Some("success"), _) if !is_error => Outcome::Done,
            (_, Some(reason @ ("aborted_tools" | "aborted_streaming"))) => {
                Outcome::Failed(format!("it was interrupted ({reason})"))
            }
            _ => {
                let words = words();
                Outcome::Failed(if words.is_empty() { "it failed, and does not say why".into() } else { words })
            }
        }
    }
}

fn used(frame: &Value) -> Usage {
    let dollars = frame["total_cost_usd"].as_f64().filter(|dollars| *dollars >= 0.0);
    let turns = frame["num_turns"].as_u64().and_then(|turns| u32::try_from(turns).ok()).unwrap_or(0);
    Usage { cost_micros: dollars.map(|dollars| (dollars * 1e6).round() as u64), ..tokens(&frame["usage"], turns) }
}

fn tokens(usage: &Value, turns: u32) -> Usage {
    let number = |name: &str| usage[name].as_u64().unwrap_or(0);
    Usage {
        turns,
        cost_micros: None,
        input_tokens: number("input_tokens")
            .saturating_add(number("cache_creation_input_tokens"))
            .saturating_add(number("cache_read_input_tokens")),
        output_tokens: number("output_tokens"),
    }
}

fn permitted(answer: &Answer, input: &Value, suggestions: &Value) -> Value {
    match answer.choice.as_deref() {
        Some(ALLOW) => json!({ "behavior": "allow", "updatedInput": input }),
        Some(ALWAYS) => {
            // For this conversation: nothing of it is to stay on the machine.
            let mut rules = suggestions.clone();
            for rule in rules.as_array_mut().into_iter().flatten() {
                rule["destination"] = json!("session");
            }
            json!({ "behavior": "allow", "updatedInput": input, "updatedPermissions": rules })
        }
        _ => {
            let words = answer.text.as_deref().unwrap_or("somebody who was asked does not allow it");
            json!({ "behavior": "deny", "message": words })
        }
    }
}

/// What would not be asked again.
fn rules_of(suggestions: &Value) -> Option<String> {
    let rules = suggestions.as_array()?.iter().filter(|suggestion| suggestion["behavior"] == "allow");
    let named = rules.flat_map(|suggestion| suggestion["rules"].as_array().into_iter().flatten()).map(|rule| {
        let tool = rule["toolName"].as_str().unwrap_or("that");
        rule["ruleContent"].as_str().map_or_else(|| tool.to_owned(), |content| format!("{tool}({content})"))
    });
    let text = named.collect::<Vec<_>>().join(", ");
    (!text.is_empty()).then(|| one_line(&text, 300))
}

fn choice(id: &str, label: String) -> Choice {
    Choice { id: one_line(id, 500), label }
}

/// What a call is about.
fn about(input: &Value) -> String {
    let keys = ["command", "file_path", "notebook_path", "path", "pattern", "url", "query", "description", "prompt"];
    let found = keys.iter().find_map(|key| input[key].as_str());
    found.map_or_else(|| if input.is_null() { String::new() } else { input.to_string() }, Into::into)
}

fn class(tool: &str) -> Class {
    match tool {
        "Bash" | "BashOutput" | "KillShell" | "Monitor" => Class::Shell,
        "Edit" | "MultiEdit" | "Write" | "NotebookEdit" => Class::Edit,
        "Read" | "Glob" | "Grep" | "LS" => Class::Read,
        "WebFetch" | "WebSearch" => Class::Fetch,
        _ => Class::Other,
    }
}

#[cfg(test)]
mod tests;
