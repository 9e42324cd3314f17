//! `ado completions`: what makes a shell complete ado's command line.

use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};

use super::complete::ASK;
use super::error::{Error, Kind};
use super::output::write;

/// Print what makes a shell complete commands and task ids
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Put one of these into what your shell reads when it starts:\n  source <(ado completions bash)                  ~/.bashrc\n  source <(ado completions zsh)                   ~/.zshrc, after compinit\n  ado completions fish | source                   ~/.config/fish/config.fish\n\nIds, groups and names are asked of the mesh while you type; nothing is started for it."
)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(crate) fn run(args: &Args) -> Result<u8, Error> {
    let shell: &dyn EnvCompleter = match args.shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    shell.write_registration(ASK, "ado", "ado", "ado", &mut script)?;
    let script = String::from_utf8(script).map_err(|error| Error::new(Kind::Local, "no text").because(error))?;
    write(&script)?;
    Ok(0)
}
