//! The README's tour, as a newcomer would type it.

use std::fs;
use std::path::Path;

use crate::support::{Ran, TestEnv};

/// The README's blocks of a kind.
fn blocks(kind: &str) -> Vec<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("a README");
    let opening = format!("```{kind}\n");
    let ends = readme.split(&opening).skip(1);
    ends.map(|rest| rest.split("```").next().expect("a block has an end").to_owned()).collect()
}

#[test]
fn the_configuration_of_the_readme_is_one() {
    let env = TestEnv::new();
    let [text] = &blocks("yaml config")[..] else { panic!("one configuration") };
    fs::write(env.work().join("ado.yaml"), text).expect("a file");
    let mut command = env.command(["config", "show", "--config", "ado.yaml", "--remote", "-o", "json"]);
    let shown = Ran::of(command.env("ADO_API_KEY", "ado1:secret"));
    shown.assert_code(0);
    let given: Vec<_> =
        shown.json().as_array().expect("keys").iter().filter(|key| key["origin"] != "default").cloned().collect();
    assert!(given.len() >= 10, "{given:?}");
}

#[test]
fn every_command_of_the_readme_works() {
    let blocks = blocks("sh tour");
    assert!(blocks.len() >= 6, "the tour has {} blocks", blocks.len());
    let env = TestEnv::new();
    let binary = Path::new(env!("CARGO_BIN_EXE_ado"));
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", binary.parent().expect("a folder").display());
    for block in blocks {
        let mut shell = env.command([""; 0]);
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-ec", &block]).current_dir(env.work()).env_clear();
        command.envs(shell.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))));
        command.env("PATH", &path);
        let ran = command.output().expect("a shell");
        let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success(), "{block}\nprinted: {out}\ncomplained: {err}");
        shell.env_clear();
    }
}
