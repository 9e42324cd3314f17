//! The arrows between folders: each may use what is listed here and nothing else. A new arrow is a design change: it comes
//! in a commit of its own, with the reason. And what a simulation needs to replay a run, as far as no lint knows it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Folder or file of `src/`, the modules it may use, and foreign crates it must not know.
const ARROWS: &[(&str, &[&str], &[&str])] = &[
    ("agents", &[], &["tokio", "quinn", "sqlx", "axum"]),
    ("blobs", &[], &["tokio", "quinn", "sqlx", "axum", "clap"]),
    (
        "cli",
        &[
            "agents",
            "client",
            "config",
            "controller",
            "env",
            "gateway",
            "json",
            "local",
            "net",
            "task",
            "tasks",
            "telemetry",
            "worker",
        ],
        &["quinn", "sqlx", "redis"],
    ),
    ("client", &["env", "net", "tasks"], &["quinn", "sqlx", "clap"]),
    ("config", &[], &["tokio", "quinn", "sqlx", "axum"]),
    (
        "controller",
        &["agents", "blobs", "env", "gateway", "net", "queue", "scheduler", "store", "task", "tasks"],
        &["quinn", "sqlx", "redis", "axum", "clap", "object_store"],
    ),
    ("env", &[], &["tokio", "quinn", "sqlx"]),
    ("gateway", &[], &["quinn", "sqlx"]),
    ("json", &[], &["tokio", "quinn", "sqlx", "axum", "clap"]),
    ("local", &["client", "env", "tasks"], &["quinn", "sqlx", "clap"]),
    ("net", &["env", "tasks"], &["sqlx", "axum", "clap"]),
    ("queue", &["env", "tasks"], &["quinn", "sqlx", "axum"]),
    ("scheduler", &[], &["tokio", "quinn", "sqlx", "axum"]),
    ("store", &["env", "task"], &["quinn", "redis", "axum", "clap"]),
    ("task", &[], &["tokio", "quinn", "sqlx", "axum"]),
    ("tasks", &[], &["quinn", "sqlx", "axum"]),
    ("telemetry", &[], &["quinn", "sqlx", "axum"]),
    ("worker", &["agents", "env", "net", "tasks"], &["quinn", "sqlx", "redis", "axum", "clap"]),
];

fn sources(at: &Path) -> Vec<PathBuf> {
    if at.is_file() {
        return vec![at.to_owned()];
    }
    let entries = fs::read_dir(at).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| sources(&path)).filter(|path| path.extension().is_some_and(|kind| kind == "rs")).collect()
}

/// Code without comments and without what only tests see: `tests` and `conformance` files, and all after `#[cfg(test)]`.
fn code(path: &Path) -> String {
    if path
        .components()
        .any(|part| ["tests", "tests.rs", "conformance", "conformance.rs"].iter().any(|name| part.as_os_str() == *name))
    {
        return String::new();
    }
    let text = fs::read_to_string(path).expect("a source file");
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| [line, "\n"]).collect()
}

/// Names that follow `prefix`, and the names of a brace list that follows it.
fn after(text: &str, prefix: &str) -> BTreeSet<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = BTreeSet::new();
    for (at, _) in text.match_indices(prefix) {
        let rest = &text[at + prefix.len()..];
        match rest.strip_prefix('{').and_then(|list| list.split('}').next()) {
            Some(list) => names.extend(list.split(',').map(|item| name(item.trim()))),
            None => drop(names.insert(name(rest))),
        }
    }
    names
}

#[test]
fn folders_use_only_what_they_may_know() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let modules: BTreeMap<String, PathBuf> = fs::read_dir(&src)
        .expect("src")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.file_stem().expect("a name").to_string_lossy().into_owned(), path))
        .filter(|(name, _)| name != "main" && name != "lib")
        .collect();
    let listed: BTreeSet<_> = ARROWS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(modules.keys().cloned().collect::<BTreeSet<_>>(), listed, "every folder has a line here, and no other");
    for (name, may_use, must_not_know) in ARROWS {
        let text: String = sources(&modules[*name]).iter().map(|path| code(path)).collect();
        let used: BTreeSet<_> =
            after(&text, "crate::").into_iter().filter(|used| modules.contains_key(used) && used != name).collect();
        let allowed: BTreeSet<_> = may_use.iter().map(|name| (*name).to_owned()).collect();
        assert!(used.is_subset(&allowed), "src/{name} uses {:?}", used.difference(&allowed).collect::<Vec<_>>());
        assert!(
            allowed.is_subset(&used),
            "src/{name} no longer uses {:?}: remove the arrow",
            allowed.difference(&used)
        );
        for foreign in *must_not_know {
            let leaks = [format!("{foreign}::"), format!("use {foreign}")].iter().any(|use_of| {
                text.match_indices(use_of)
                    .any(|(at, _)| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
            });
            assert!(!leaks, "src/{name} must not know {foreign}");
        }
    }
}

#[test]
fn every_select_is_biased_and_no_map_has_an_order_by_chance() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let roots = ["src", "proto/src", "certs/src", "netsim/src"].map(|folder| root.join(folder));
    for path in roots.iter().flat_map(|folder| sources(folder)) {
        let text = code(&path);
        for (at, _) in text.match_indices("select! {") {
            let first = text[at + "select! {".len()..].trim_start();
            assert!(first.starts_with("biased;"), "{}: a `select!` without `biased`", path.display());
        }
        // The server's memory of TLS sessions is asked by key only.
        let asked_by_key = path.ends_with("certs/src/sessions.rs");
        for unordered in ["HashMap", "HashSet"] {
            assert!(asked_by_key || !text.contains(unordered), "{}: a {unordered}", path.display());
        }
    }
}
