//! Agents that speak the Agent Client Protocol (version 1): JSON-RPC 2.0, one message a line, both ways.
//!
//! Seen with gemini-cli 0.61.0 and with recordings of cursor-agent. The response to `session/prompt` ends a run. What an
//! agent asks that is not known is answered at once that it is not: some wait for that.

use std::collections::BTreeMap;

use ado_proto::record::{Answer, AskKind, Choice};
use ado_proto::spec::{TaskSpec, Usage};
use serde_json::{Value, json};

use super::event::{Class, Event, Out, Outcome, Question, Subject, Tool, one_line, text_of};
use super::{Driver, File, Launch, Real, Site};

/// How it is found, and what it needs.
pub(super) const GEMINI: Real = Real {
    name: "gemini-cli",
    program: "gemini",
    credentials: &["GEMINI_API_KEY", "GOOGLE_API_KEY"],
    settings: &["GOOGLE_GEMINI_BASE_URL", "GEMINI_MODEL"],
    login: "GEMINI_CLI_HOME",
    package: "@google/gemini-cli",
    driver: |spec, session| Box::new(Acp::new(spec, session, gemini)),
};

/// Driven as its recordings and its documentation say; not tried with the program itself.
pub(super) const CURSOR: Real = Real {
    name: "cursor-cli",
    program: "cursor-agent",
    credentials: &["CURSOR_API_KEY", "CURSOR_AUTH_TOKEN"],
    settings: &["CURSOR_API_ENDPOINT"],
    login: "CURSOR_CONFIG_DIR",
    package: "",
    driver: |spec, session| Box::new(Acp::new(spec, session, cursor)),
};

/// The model gemini-cli uses unless told: with its own choice it asks another model before every turn.
const GEMINI_MODEL: &str = "gemini-2.5-pro";
/// Longest summary of a tool call, bytes.
const SUMMARY: usize = 200;
/// JSON-RPC 2.0: method not found.
const NOT_FOUND: i64 = -32601;

/// How one of these agents is started.
type Start = fn(&Acp, &Site<'_>) -> Launch;

/// One run.
#[derive(Debug)]
struct Acp {
    launch: Start,
    prompt: String,
    model: Option<String>,
    /// Where the agent works.
    cwd: String,
    /// Ids of our requests begin with this: whoever else gets hold of stdout does not know it.
    key: String,
    session: Option<String>,
    at_line_start: bool,
    /// The agent's requests that wait for somebody.
    asks: BTreeMap<String, (Value, Asked)>,
    /// Calls of which it was said that they began.
    began: BTreeMap<String, Tool>,
    usage: Usage,
    ended: bool,
}

/// What kind of request waits.
#[derive(Debug)]
enum Asked {
    Permission,
    /// The name of the only field of the form.
    Form(String),
}

fn gemini(acp: &Acp, site: &Site<'_>) -> Launch {
    let settings = json!({
        "security": { "auth": { "selectedType": "gemini-api-key" }, "folderTrust": { "enabled": false } },
        "general": { "enableAutoUpdate": false, "enableAutoUpdateNotification": false },
        "privacy": { "usageStatisticsEnabled": false },
        "telemetry": { "enabled": false },
    });
    let model = acp.model.as_deref().unwrap_or(GEMINI_MODEL);
    Launch {
        argv: [site.program, "--acp", "-m", model].map(Into::into).into(),
        env: [
            ("GEMINI_CLI_HOME", site.home),
            ("GEMINI_TELEMETRY_ENABLED", "false"),
            ("GEMINI_CLI_TRUST_WORKSPACE", "true"),
            ("GEMINI_CLI_NO_RELAUNCH", "true"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into(),
        files: vec![
            File::text(".gemini/settings.json", settings.to_string()),
            // It runs `bash -c COMMAND`, the first `bash` there is.
            File::program("bin/bash", site.tool("/bin/bash \"$@\"")),
        ],
        path_first: Some(format!("{}/bin", site.home)),
    }
}

fn cursor(acp: &Acp, site: &Site<'_>) -> Launch {
    // What asks is up to its own configuration: shell and network, for those it does not know.
    let settings = json!({ "version": 1, "approvalMode": "allowlist", "permissions": { "allow": [], "deny": [] } });
    let mut argv: Vec<String> = [site.program, "--trust"].map(Into::into).into();
    if let Some(model) = &acp.model {
        argv.extend(["--model".into(), model.clone()]);
    }
    argv.push("acp".into());
    Launch {
        argv,
        env: [("CURSOR_CONFIG_DIR".into(), site.home.into())].into(),
        files: vec![
            File::text("cli-config.json", settings.to_string()),
            File::program("bin/bash", site.tool("/bin/bash \"$@\"")),
        ],
        path_first: Some(format!("{}/bin", site.home)),
    }
}

impl Acp {
    fn new(spec: &TaskSpec, session: &str, launch: Start) -> Self {
        Self {
            launch,
            prompt: spec.input.summary(),
            model: spec.model.clone(),
            cwd: String::new(),
            key: session.into(),
            session: None,
            at_line_start: true,
            asks: BTreeMap::new(),
            began: BTreeMap::new(),
            usage: Usage::default(),
            ended: false,
        }
    }

    fn request(&self, what: &str, method: &str, params: &Value, out: &mut Out) {
        let id = self.id(what);
        out.frame(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }));
    }

    fn id(&self, what: &str) -> String {
        format!("{}/{what}", self.key)
    }

    fn reply(id: &Value, result: &Value, out: &mut Out) {
        out.frame(&json!({ "jsonrpc": "2.0", "id": id, "result": result }));
    }

    /// Ours was answered.
    fn answered(&mut self, id: &str, frame: &Value, out: &mut Out) {
        let what = id.strip_prefix(self.key.as_str()).and_then(|rest| rest.strip_prefix('/')).map(ToOwned::to_owned);
        let Some(what) = what else { return };
        if let Some(error) = frame.get("error") {
            return self.refused(&what, error, out);
        }
        let result = &frame["result"];
        match what.as_str() {
            "hello" => {
                let params = json!({ "cwd": self.cwd, "mcpServers": [] });
                self.request("new", "session/new", &params, out);
            }
            "new" => {
                let Some(session) = result["sessionId"].as_str() else {
                    return self.end(Outcome::Failed("it began no session".into()), out);
                };
                self.session = Some(session.into());
                out.event(Event::Session(session.into()));
                // Some ask nobody unless told to.
                let modes = &result["modes"];
                let has_default = modes["availableModes"].as_array().into_iter().flatten();
                if modes["currentModeId"] != "default" && has_default.into_iter().any(|mode| mode["id"] == "default") {
                    self.request(
                        "mode",
                        "session/set_mode",
                        &json!({ "sessionId": session, "modeId": "default" }),
                        out,
                    );
                }
                let prompt = json!({ "sessionId": session, "prompt": [{ "type": "text", "text": self.prompt }] });
                self.request("prompt", "session/prompt", &prompt, out);
            }
            "prompt" => self.result(result, out),
            _ => {}
        }
    }

    fn refused(&mut self, what: &str, error: &Value, out: &mut Out) {
        let message = text_of(&error["message"]);
        let detail = text_of(&error["data"]["details"]);
        let words = if detail.is_empty() { message } else { format!("{message}: {detail}") };
        let outcome = match (what, error["code"].as_i64()) {
            ("mode", _) => return out.event(Event::Warning(one_line(&format!("no mode: {words}"), 300))),
            // "Authentication required" of the protocol.
            (_, Some(-32000)) => Outcome::of_api(Some(401), &words),
            // An error of the API's is passed on with its status.
            (_, Some(code @ 400..=599)) => Outcome::of_api(u64::try_from(code).ok(), &words),
            _ => match status_in(&words) {
                Some(status) => Outcome::of_api(Some(status), &words),
                None => Outcome::Failed(one_line(&words, 1000)),
            },
        };
        self.end(outcome, out);
    }

    fn result(&mut self, result: &Value, out: &mut Out) {
        let tokens = &result["_meta"]["quota"]["token_count"];
        let usage = if tokens.is_object() { tokens } else { &result["usage"] };
        let number = |names: [&str; 2]| names.iter().find_map(|name| usage[name].as_u64());
        self.usage.input_tokens = number(["input_tokens", "inputTokens"]).unwrap_or(self.usage.input_tokens);
        self.usage.output_tokens = number(["output_tokens", "outputTokens"]).unwrap_or(self.usage.output_tokens);
        // What follows the last call is one more.
        self.usage.turns = self.usage.turns.saturating_add(1);
        let outcome = match result["stopReason"].as_str() {
            Some("end_turn") => Outcome::Done,
            Some("cancelled") => Outcome::Failed("it was interrupted".into()),
            Some("refusal") => Outcome::Failed("its model refuses to do that".into()),
            Some("max_tokens") => Outcome::Failed("its model's answer is longer than it may be".into()),
            Some("max_turn_requests") => Outcome::Hopeless("its own limit of turns is used up".into()),
            other => Outcome::Failed(format!("it stopped: {}", one_line(other.unwrap_or("it does not say why"), 200))),
        };
        self.end(outcome, out);
    }

    fn end(&mut self, outcome: Outcome, out: &mut Out) {
        self.end_line(out);
        out.event(Event::Used(self.usage));
        out.event(Event::Ended(outcome));
        self.ended = true;
    }

    fn update(&mut self, update: &Value, out: &mut Out) {
        match update["sessionUpdate"].as_str() {
            Some("agent_message_chunk") => {
                if let Some(text) = update["content"]["text"].as_str().filter(|text| !text.is_empty()) {
                    self.at_line_start = text.ends_with('\n');
                    out.event(Event::Text(text.into()));
                }
            }
            Some("agent_thought_chunk") => out.event(Event::Doing("thinking".into())),
            Some("tool_call" | "tool_call_update") => self.call(update, out),
            Some("plan") => {
                let entries = update["entries"].as_array().into_iter().flatten();
                if let Some(now) = entries.into_iter().find(|entry| entry["status"] == "in_progress") {
                    out.event(Event::Doing(one_line(&text_of(&now["content"]), SUMMARY)));
                }
            }
            Some("usage_update") => {
                if let Some(dollars) = update["cost"]["amount"].as_f64().filter(|amount| *amount >= 0.0) {
                    self.usage.cost_micros = Some((dollars * 1e6).round() as u64);
                    out.event(Event::Used(self.usage));
                }
            }
            _ => {}
        }
    }

    fn call(&mut self, call: &Value, out: &mut Out) {
        let Some(id) = call["toolCallId"].as_str() else { return };
        self.begins(id, call, out);
        if matches!(call["status"].as_str(), Some("completed" | "failed")) && self.began.remove(id).is_some() {
            // Each call is a turn of its model's, as far as anybody says.
            self.usage.turns = self.usage.turns.saturating_add(1);
            out.event(Event::Used(self.usage));
            out.event(Event::ToolEnded { call: id.into() });
        }
    }

    /// A call is told once, whichever message is the first about it: some say nothing before they ask.
    fn begins(&mut self, id: &str, call: &Value, out: &mut Out) {
        if self.began.contains_key(id) {
            return;
        }
        self.end_line(out);
        let kind = call["kind"].as_str().unwrap_or("tool");
        let tool = Tool {
            call: id.into(),
            name: one_line(kind, SUMMARY),
            summary: one_line(call["title"].as_str().unwrap_or_default(), SUMMARY),
        };
        self.began.insert(id.into(), tool.clone());
        out.event(Event::ToolBegan(tool));
    }

    fn end_line(&mut self, out: &mut Out) {
        if !std::mem::replace(&mut self.at_line_start, true) {
            out.event(Event::Text("\n".into()));
        }
    }

    /// The agent wants something of us.
    fn wants(&mut self, id: &Value, method: &str, params: &Value, out: &mut Out) {
        match method {
            "session/request_permission" => self.permission(id, params, out),
            "elicitation/create" => self.form(id, params, out),
            "cursor/ask_question" => self.cursor_question(id, params, out),
            _ => out.frame(&json!({ "jsonrpc": "2.0", "id": id,
                "error": { "code": NOT_FOUND, "message": "not offered" } })),
        }
    }

    fn permission(&mut self, id: &Value, params: &Value, out: &mut Out) {
        let call = &params["toolCall"];
        if let Some(call_id) = call["toolCallId"].as_str() {
            self.begins(call_id, call, out);
        }
        let options = params["options"].as_array().cloned().unwrap_or_default();
        let of_kind = |kind: &str| options.iter().find(|option| option["kind"] == kind);
        let id_of = |option: Option<&Value>| option.and_then(|option| option["optionId"].as_str()).map(Into::into);
        // "Always" may stay on the machine beyond the task, so it is not offered.
        let offered = options.iter().filter(|option| {
            let kind = option["kind"].as_str().unwrap_or_default();
            kind != "reject_always" && (kind != "allow_always" || is_of_session(option))
        });
        let choices = offered.filter_map(|option| {
            let choice = option["optionId"].as_str()?;
            Some(Choice { id: one_line(choice, 500), label: one_line(option["name"].as_str().unwrap_or(choice), 500) })
        });
        let (kind, title) = (call["kind"].as_str().unwrap_or("other"), text_of(&call["title"]));
        let key = id.to_string();
        out.event(Event::Asks(Question {
            id: key.clone(),
            kind: AskKind::Permission { tool: one_line(kind, SUMMARY) },
            subject: Some(Subject { tool: kind.into(), class: class(kind), about: title.clone() }),
            text: one_line(&format!("may it use {kind}: {title}"), 1000),
            detail: call.clone(),
            choices: choices.collect(),
            free_text: false,
            default: id_of(of_kind("reject_once")),
        }));
        self.asks.insert(key, (id.clone(), Asked::Permission));
    }

    /// A form of one field is a question; others nobody could answer in one line.
    fn form(&mut self, id: &Value, params: &Value, out: &mut Out) {
        let fields = params["requestedSchema"]["properties"].as_object();
        let only = fields.filter(|fields| fields.len() == 1).and_then(|fields| fields.iter().next());
        let Some((name, field)) = only else {
            return Self::reply(id, &json!({ "action": "decline" }), out);
        };
        let listed = field["enum"].as_array().or_else(|| field["oneOf"].as_array());
        let choices = listed.into_iter().flatten().filter_map(|option| {
            let value = option.as_str().or_else(|| option["const"].as_str())?;
            let label = option["title"].as_str().unwrap_or(value);
            Some(Choice { id: one_line(value, 500), label: one_line(label, 500) })
        });
        let key = id.to_string();
        out.event(Event::Asks(Question {
            id: key.clone(),
            kind: AskKind::Question,
            subject: None,
            text: one_line(&text_of(&params["message"]), 1000),
            detail: field.clone(),
            choices: choices.collect(),
            free_text: listed.is_none(),
            default: None,
        }));
        self.asks.insert(key, (id.clone(), Asked::Form(name.clone())));
    }

    fn cursor_question(&mut self, id: &Value, params: &Value, out: &mut Out) {
        let as_form = json!({
            "message": params["question"].as_str().or_else(|| params["title"].as_str()).unwrap_or("what now?"),
            "requestedSchema": { "properties": { "answer": { "enum": params["options"] } } },
        });
        self.form(id, &as_form, out);
    }
}

impl Driver for Acp {
    fn launch(&self, site: &Site<'_>) -> Launch {
        (self.launch)(self, site)
    }

    fn works_in(&mut self, cwd: &str) {
        self.cwd = cwd.into();
    }

    fn start(&mut self, out: &mut Out) {
        let hello = json!({
            "protocolVersion": 1,
            "clientInfo": { "name": "ado", "version": env!("CARGO_PKG_VERSION") },
            "clientCapabilities": {
                "fs": { "readTextFile": false, "writeTextFile": false },
                "terminal": false,
                "elicitation": { "form": {} },
            },
        });
        self.request("hello", "initialize", &hello, out);
    }

    fn hear(&mut self, line: &[u8], out: &mut Out) {
        if self.ended || line.trim_ascii().is_empty() {
            return;
        }
        let frame = match serde_json::from_slice::<Value>(line) {
            Ok(frame) if frame["jsonrpc"] == "2.0" => frame,
            Ok(_) | Err(_) => return out.event(Event::Stray(line.to_vec())),
        };
        match (frame["method"].as_str(), &frame["id"]) {
            (Some("session/update"), _) if self.is_ours(&frame) => self.update(&frame["params"]["update"], out),
            (Some(_), Value::Null) => {}
            (Some(method), id) => {
                let (method, id) = (method.to_owned(), id.clone());
                self.wants(&id, &method, &frame["params"], out);
            }
            (None, Value::String(id)) => self.answered(&id.clone(), &frame, out),
            (None, _) => {}
        }
    }

    fn answer(&mut self, id: &str, answer: &Answer, out: &mut Out) {
        let Some((request, asked)) = self.asks.remove(id) else { return };
        let words = answer.choice.as_ref().or(answer.text.as_ref());
        let result = match (asked, words) {
            (Asked::Permission, Some(option)) => json!({ "outcome": { "outcome": "selected", "optionId": option } }),
            (Asked::Permission, None) => json!({ "outcome": { "outcome": "cancelled" } }),
            (Asked::Form(name), Some(words)) => {
                json!({ "action": "accept", "content": { name: words } })
            }
            (Asked::Form(_), None) => json!({ "action": "decline" }),
        };
        Self::reply(&request, &result, out);
    }

    fn session_files(&self) -> &'static [&'static str] {
        &[".gemini/tmp", ".gemini/projects.json"]
    }
}

impl Acp {
    fn is_ours(&self, frame: &Value) -> bool {
        self.session.is_none() || frame["params"]["sessionId"].as_str() == self.session.as_deref()
    }
}

/// "Always" that ends with the session.
fn is_of_session(option: &Value) -> bool {
    option["name"].as_str().is_some_and(|name| name.to_lowercase().contains("session"))
}

fn class(kind: &str) -> Class {
    match kind {
        "execute" => Class::Shell,
        "edit" | "delete" | "move" => Class::Edit,
        "read" | "search" => Class::Read,
        "fetch" => Class::Fetch,
        _ => Class::Other,
    }
}

/// The status of an API's answer that is only told in words.
fn status_in(words: &str) -> Option<u64> {
    let numbers = words.split(|c: char| !c.is_ascii_digit()).filter(|number| number.len() == 3);
    numbers.filter_map(|number| number.parse().ok()).find(|number| (400..600).contains(number))
}

#[cfg(test)]
mod tests;
