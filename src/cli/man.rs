//! `ado man`: manual pages.

use std::path::PathBuf;

use clap_mangen::Man;

use super::Global;
use super::error::{Error, Kind};
use super::output::{print, write};
use serde_json::json;

/// Print a manual page, or write all of them
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ado man run | man -l -                          read the page of a command\n  ado man --dir ~/.local/share/man/man1           install them: `man ado-run`"
)]
pub(crate) struct Args {
    /// The command, and the command in it; default: ado itself
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Write the pages of all commands into this directory
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<u8, Error> {
    let pages = pages();
    let Some(dir) = &args.dir else {
        let wanted = std::iter::once("ado").chain(args.command.iter().map(String::as_str)).collect::<Vec<_>>();
        let name = format!("{}.1", wanted.join("-"));
        let page = pages.iter().find(|(known, _)| *known == name).ok_or_else(|| {
            Error::usage(format!("there is no command `{}`", args.command.join(" "))).hint("ado --help")
        })?;
        write(&page.1)?;
        return Ok(0);
    };
    std::fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    for (name, page) in &pages {
        let path = dir.join(name);
        std::fs::write(&path, page).map_err(|error| failed(&path, error))?;
    }
    let names: Vec<&String> = pages.iter().map(|(name, _)| name).collect();
    if !global.quiet {
        let text = || format!("wrote {} pages to {}", names.len(), dir.display());
        print(global.output, &json!({ "dir": dir, "pages": names }), text)?;
    }
    Ok(0)
}

fn failed(path: &std::path::Path, error: std::io::Error) -> Error {
    Error::new(Kind::Local, format!("cannot write {}", path.display())).because(error)
}

/// The pages of all commands that are shown, by name of file.
fn pages() -> Vec<(String, String)> {
    let mut root = super::command();
    root.build();
    let mut pages = Vec::new();
    collect(&root, "ado", &mut pages);
    pages
}

fn collect(command: &clap::Command, name: &str, pages: &mut Vec<(String, String)>) {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page).expect("memory can be written");
    pages.push((format!("{name}.1"), String::from_utf8_lossy(&page).into_owned()));
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help") {
        collect(inner, &format!("{name}-{}", inner.get_name()), pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(command: &clap::Command, name: &str, all: &mut Vec<(String, Vec<String>)>) {
        let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
        all.push((format!("{name}.1"), shown.filter_map(|arg| arg.get_long().map(Into::into)).collect()));
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help") {
            flags(inner, &format!("{name}-{}", inner.get_name()), all);
        }
    }

    #[test]
    fn every_command_has_a_page_and_every_flag_is_on_it() {
        let mut root = crate::cli::command();
        root.build();
        let mut all = Vec::new();
        flags(&root, "ado", &mut all);
        let pages = pages();
        assert!(pages.len() > 20 && pages.len() == all.len(), "{} pages of {}", pages.len(), all.len());
        for (name, flags) in all {
            let page = &pages.iter().find(|(page, _)| *page == name).unwrap_or_else(|| panic!("{name}")).1;
            assert!(page.starts_with(".ie") || page.contains(".TH "), "{name}: {page}");
            for flag in flags {
                let escaped = format!("\\-\\-{}", flag.replace('-', "\\-"));
                assert!(page.contains(&escaped), "{name} lacks --{flag}");
            }
        }
    }
}
