//! Completions, as a shell asks for them.

use std::path::Path;
use std::process::Command;

use crate::mesh::Mesh;
use crate::support::{Ran, TestEnv};

/// What is offered for the last of these words.
fn offered(command: &mut Command, words: &[&str]) -> Vec<String> {
    let index = (words.len() - 1).to_string();
    command.arg("--").args(words).env("ADO_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", index).env("_CLAP_IFS", "\n");
    let ran = Ran::of(command);
    ran.assert_code(0);
    assert_eq!(ran.stderr(), "", "a shell that completes is not to be talked to");
    ran.stdout().lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn commands_flags_and_values_are_known_without_a_mesh() {
    let env = TestEnv::new();
    let ask = |words: &[&str]| offered(&mut env.command([""; 0]), words);
    assert_eq!(ask(&["ado", "pau"]), ["pause"]);
    assert_eq!(ask(&["ado", "list", "--colu"]), ["--columns"]);
    assert!(ask(&["ado", "list", "--state", "r"]).contains(&"running".to_owned()));
    assert!(ask(&["ado", "attach", ""]).iter().all(|word| word.starts_with('-')));
    assert!(!env.home().join("controller").exists(), "nothing is started by pressing Tab");
}

#[test]
fn ids_groups_and_names_come_from_the_mesh_that_is_meant() {
    let mesh = Mesh::start();
    let group = mesh.submit_group("later", &["true", "true"]);
    let held = mesh.submit(&["--name", "held", "--pool", "later", "true"]);
    let ask = |words: &[&str]| offered(&mut mesh.command([""; 0]), words);
    let all = ask(&["ado", "attach", ""]);
    for word in ["first", "held", &held, &group] {
        assert!(all.iter().any(|offer| offer == word), "{word} is not in {all:?}");
    }
    assert_eq!(ask(&["ado", "attach", "he"]), ["held"]);
    assert_eq!(ask(&["ado", "status", &held[..10]]), std::slice::from_ref(&held));
    assert_eq!(ask(&["ado", "pause", "fi"]), [""; 0], "what has ended is not paused");
    assert_eq!(ask(&["ado", "list", "--group", "gr"]), [group]);
    assert_eq!(ask(&["ado", "list", "--worker", "b"]), ["box"]);
    // By the flag on the line, not only by the environment.
    let mut plain = mesh.env().command([""; 0]);
    assert_eq!(offered(&mut plain, &["ado", "--remote", "attach", "he"]), ["held"]);
}

#[test]
fn bash_completes() {
    if !Path::new("/bin/bash").exists() {
        eprintln!("SKIPPED: there is no bash on this machine");
        return;
    }
    let mesh = Mesh::start();
    let script = r#"
        source <(ado completions bash)
        complete -p ado >/dev/null || exit 9
        COMP_WORDS=(ado status fir); COMP_CWORD=2; COMP_TYPE=9
        _clap_complete_ado ado fir status
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let env = mesh.command([""; 0]);
    let folder = Path::new(env!("CARGO_BIN_EXE_ado")).parent().expect("a folder");
    let mut bash = Command::new("/bin/bash");
    bash.args(["--norc", "-c", script]).env_clear();
    bash.envs(env.get_envs().filter_map(|(name, value)| Some((name, value?))));
    bash.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", folder.display()));
    let ran = Ran::of(&mut bash);
    ran.assert_code(0);
    assert_eq!(ran.stdout().trim(), "first", "{}", ran.stderr());
}

#[test]
fn every_shell_gets_a_script() {
    let env = TestEnv::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = env.ado(["completions", shell]);
        ran.assert_code(0);
        assert!(ran.stdout().contains("ADO_COMPLETE") && ran.stdout().contains("ado"), "{}", ran.stdout());
    }
    env.ado(["completions", "tcsh"]).assert_code(125);
}
