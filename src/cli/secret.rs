//! `ado secret`: values that tasks get and nobody sees.

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};

use ado_proto::Secret;
use ado_proto::request::SecretInfo;
use ado_proto::spec::SECRET_BYTES;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde_json::{Value, json};

use super::Global;
use super::error::{Error, Kind};
use super::output::{Format, one_line, print};
use super::session::App;
use crate::config::Flags;
use crate::json::rfc3339;

/// Keep values that tasks get and nobody sees
///
/// A task gets a secret by name (`ado run --secret NAME`), in a variable of its environment. In what it writes and says the
/// value is shown as `***`; so are its base64, URL-encoded, JSON and hexadecimal forms, and of a value of several lines
/// every line of at least 8 bytes. Who may submit tasks can use every secret of the namespace, and a task can do with it what
/// it likes: this keeps it out of logs, it does not keep it from the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Keep a secret, or a new value of it
    ///
    /// The value is asked for without an echo, or read from stdin, whose last line break is not part of it. It has 4 to
    /// 16,384 bytes. A task that runs keeps the value it began with.
    #[command(
        after_help = "Examples:\n  ado secret set github-token                          asks for it\n  ado secret set deploy-key --from-file ~/.ssh/deploy\n  pass show github | ado secret set github-token"
    )]
    Set(Set),
    /// List secrets, without their values
    #[command(alias = "ls")]
    List,
    /// Forget a secret: tasks that name it fail when they are to begin
    #[command(alias = "remove")]
    Rm {
        /// Its name
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Set {
    /// What tasks call it by
    name: String,
    /// Take the value from this file, as it is
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let format = app.global.output;
    match args.command {
        Command::Set(set) => {
            // Before anything is started: it may take its time.
            let value = value(&set)?;
            let session = app.session().await?;
            let kept = session.client.set_secret(&set.name, value).await?;
            print(format, &to_json(&kept), || format!("{} is set, version {}", kept.name, kept.version))?;
            session.close().await;
        }
        Command::List => {
            let session = app.session().await?;
            let secrets = session.client.list_secrets().await?;
            let json: Vec<Value> = secrets.iter().map(to_json).collect();
            print(format, &json, || table(&secrets))?;
            if secrets.is_empty() && format == Format::Text && !app.global.quiet {
                eprintln!("no secrets: keep one with `ado secret set NAME`");
            }
            session.close().await;
        }
        Command::Rm { name } => {
            let session = app.session().await?;
            session.client.remove_secret(&name).await?;
            print(format, &json!({ "name": name, "removed": true }), || format!("removed {name}"))?;
            session.close().await;
        }
    }
    Ok(0)
}

fn value(set: &Set) -> Result<Secret, Error> {
    let value = match &set.from_file {
        Some(file) => text(read_file(file)?)?,
        None if io::stdin().is_terminal() => ask(&set.name)?,
        None => {
            let mut bytes = Vec::new();
            io::stdin().take(most() + 3).read_to_end(&mut bytes).map_err(|error| unreadable("stdin", error))?;
            without_line_break(text(bytes)?)
        }
    };
    let bytes = value.expose().len();
    if !SECRET_BYTES.contains(&bytes) {
        let (least, most) = (SECRET_BYTES.start(), SECRET_BYTES.end());
        let found = if bytes > *most { "more".to_owned() } else { bytes.to_string() };
        return Err(Error::usage(format!("a secret has {least} to {most} bytes, this one has {found}")));
    }
    Ok(value)
}

fn most() -> u64 {
    *SECRET_BYTES.end() as u64
}

fn read_file(file: &Path) -> Result<Vec<u8>, Error> {
    let unreadable = |error| unreadable(&format!("`{}`", file.display()), error);
    let mut bytes = Vec::new();
    std::fs::File::open(file).map_err(unreadable)?.take(most() + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

fn unreadable(what: &str, error: io::Error) -> Error {
    Error::usage(format!("cannot read {what}")).because(error)
}

fn text(bytes: Vec<u8>) -> Result<Secret, Error> {
    String::from_utf8(bytes).map(Secret::new).map_err(|_| {
        Error::usage("a secret is text (UTF-8), and this is not")
            .hint("encode it, with base64 for example, and decode it in the task")
    })
}

fn without_line_break(value: Secret) -> Secret {
    let text = value.expose();
    let text = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
    Secret::new(text.to_owned())
}

/// Asks on the terminal, which does not show what is typed.
fn ask(name: &str) -> Result<Secret, Error> {
    let hushed = Hushed::now().map_err(|error| unreadable("the terminal", error))?;
    eprint!("value of {name}: ");
    let mut line = Vec::new();
    let read = io::stdin().lock().read_until(b'\n', &mut line);
    drop(hushed);
    eprintln!();
    read.map_err(|error| unreadable("the terminal", error))?;
    if line.is_empty() {
        return Err(Error::new(Kind::Interrupted, "no value was given"));
    }
    Ok(without_line_break(text(line)?))
}

/// The terminal at stdin while it does not show what is typed.
struct Hushed(Termios);

impl Hushed {
    fn now() -> io::Result<Self> {
        let found = tcgetattr(io::stdin())?;
        let mut modes = found.clone();
        modes.local_flags.remove(LocalFlags::ECHO);
        // What was typed before would have been seen.
        tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &modes)?;
        Ok(Self(found))
    }
}

impl Drop for Hushed {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

fn table(secrets: &[SecretInfo]) -> String {
    let line = |name: &str, namespace: &str, version: &str, updated: &str, owner: &str| {
        format!("{name:<24}  {namespace:<12}  {version:>7}  {updated:<20}  {owner}\n")
    };
    let rows = secrets.iter().map(|secret| {
        // A second is close enough for people.
        let updated = secret.updated_at.0 - secret.updated_at.0.rem_euclid(1_000_000);
        let updated = rfc3339(ado_proto::Timestamp(updated));
        line(&secret.name, &secret.namespace.0, &secret.version.to_string(), &updated, &one_line(&secret.owner, 100))
    });
    let head = (!secrets.is_empty()).then(|| line("SECRET", "NAMESPACE", "VERSION", "SET", "BY"));
    head.into_iter().chain(rows).collect()
}

fn to_json(secret: &SecretInfo) -> Value {
    json!({
        "name": secret.name,
        "namespace": secret.namespace,
        "version": secret.version,
        "owner": secret.owner,
        "createdAt": rfc3339(secret.created_at),
        "updatedAt": rfc3339(secret.updated_at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_break_is_not_part_of_what_is_piped() {
        for (piped, value) in [("key\n", "key"), ("key\r\n", "key"), ("key\n\n", "key\n"), ("key", "key")] {
            assert_eq!(without_line_break(Secret::new(piped.into())).expose(), value);
        }
    }

    #[test]
    fn a_file_is_taken_as_it_is_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let from = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            value(&Set { name: "key".into(), from_file: Some(file.clone()) })
                .map_err(|error| error.render(Format::Text))
        };
        assert_eq!(from(b"line\n").unwrap().expose(), "line\n");
        assert!(from(b"abc").unwrap_err().contains("4 to 16384 bytes, this one has 3"));
        assert!(from(&[b'x'; 20_000]).unwrap_err().contains("this one has more"));
        assert!(from(b"\xff\xfe\xfd\xfc").unwrap_err().contains("base64"));
    }
}
