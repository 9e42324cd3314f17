//! Which uses of tools are allowed or denied without asking anybody. Pure.
//!
//! A rule is `TOOL` or `TOOL(PATTERN)`: the agent's name of a tool, or its kind (`shell`, `edit`, `read`, `fetch`), and
//! what it is about. `*` stands for anything, in both.

use ado_proto::spec::Rules;

use super::event::{Class, Subject};

/// What the rules say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Allow,
    /// It is not.
    Deny,
    /// Somebody is asked.
    Ask,
}

/// What rules say about a use of a tool: those that deny come first.
pub fn judge(rules: &Rules, subject: &Subject) -> Verdict {
    let fits = |rules: &[String], allows| rules.iter().any(|rule| fits(rule, subject, allows));
    if fits(&rules.deny, false) {
        Verdict::Deny
    } else if fits(&rules.allow, true) {
        Verdict::Allow
    } else {
        Verdict::Ask
    }
}

/// What is wrong with a rule, if anything.
pub fn check(rule: &str) -> Result<(), String> {
    let (tool, pattern) = parts(rule);
    let closed = rule.contains('(') == pattern.is_some();
    if tool.is_empty() || !closed || tool.contains([' ', ')']) {
        return Err(format!("`{rule}` is no rule: give TOOL or TOOL(PATTERN), as in `shell(cargo test*)`"));
    }
    Ok(())
}

fn parts(rule: &str) -> (&str, Option<&str>) {
    match rule.split_once('(').and_then(|(tool, rest)| Some((tool, rest.strip_suffix(')')?))) {
        Some((tool, pattern)) => (tool, Some(pattern)),
        None => (rule, None),
    }
}

fn fits(rule: &str, subject: &Subject, allows: bool) -> bool {
    let (tool, pattern) = parts(rule);
    if !matches(tool, &subject.tool) && tool != subject.class.as_str() {
        return false;
    }
    match pattern {
        None | Some("*") => true,
        // What is allowed is one simple command: `cargo test*` does not mean `cargo test; rm -r /`.
        Some(_) if allows && subject.class == Class::Shell && is_compound(&subject.about) => false,
        Some(pattern) => matches(pattern, &subject.about),
    }
}

/// Whether a shell might make more than one command of it, or write a file.
fn is_compound(command: &str) -> bool {
    command.contains([';', '|', '&', '$', '`', '<', '>', '(', ')', '{', '}', '\n', '\r', '\\'])
}

/// Whether a text is as a pattern says, in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(tool: &str, class: Class, about: &str) -> Subject {
        Subject { tool: tool.into(), class, about: about.into() }
    }

    fn verdict(deny: &[&str], allow: &[&str], subject: &Subject) -> Verdict {
        let own = |rules: &[&str]| rules.iter().map(ToString::to_string).collect();
        judge(&Rules { deny: own(deny), allow: own(allow) }, subject)
    }

    #[test]
    fn rules_name_a_tool_or_its_kind_and_what_it_is_about() {
        let bash = subject("Bash", Class::Shell, "cargo test --lib");
        for rule in ["Bash", "shell", "Bash(*)", "shell(cargo test*)", "B*(cargo*lib)", "*", "Bash(cargo test --lib)"] {
            assert_eq!(verdict(&[], &[rule], &bash), Verdict::Allow, "{rule}");
        }
        for rule in ["bash", "edit", "Bash(cargo tes)", "shell(test*)", "shell(cargo*bin)", ""] {
            assert_eq!(verdict(&[], &[rule], &bash), Verdict::Ask, "{rule}");
        }
        assert_eq!(verdict(&["shell(*--lib*)"], &["Bash"], &bash), Verdict::Deny, "denying comes first");
    }

    #[test]
    fn a_pattern_allows_one_simple_command_and_denies_any() {
        for more in ["; rm -r /", " && x", " | sh", " $(x)", " `x`", " > /etc/passwd", "\nrm x", " & x"] {
            let command = subject("Bash", Class::Shell, &format!("cargo test{more}"));
            assert_eq!(verdict(&[], &["shell(cargo test*)"], &command), Verdict::Ask, "{more}");
            assert_eq!(verdict(&["shell(cargo*)"], &["shell"], &command), Verdict::Deny, "{more}");
        }
        let path = subject("Write", Class::Edit, "/src/a(1).rs");
        assert_eq!(verdict(&[], &["edit(/src/*)"], &path), Verdict::Allow, "a path is no command");
    }

    #[test]
    fn what_is_no_rule_is_said() {
        for rule in ["Bash", "shell(a (b) c)", "mcp__*", "*"] {
            assert_eq!(check(rule), Ok(()), "{rule}");
        }
        for rule in ["", "(x)", "Bash(x", "a b", "Bash)"] {
            assert!(check(rule).is_err(), "{rule}");
        }
    }
}
