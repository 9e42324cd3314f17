//! How help looks: short lines, as of docker or gh, in 80 columns. Pure.

use clap::{Arg, ArgAction, Command};

/// Heading of the flags every command has.
pub(crate) const GLOBAL: &str = "Global options";
/// Characters of a line.
const WIDTH: usize = 80;

/// One line a flag for `-h` and `--help` alike, below all that is said of the command. The parser's own long form spreads
/// every flag over several lines as soon as there is more than a line to say of the command.
pub(crate) fn compact(command: Command) -> Command {
    let more = command.get_long_about().map(ToString::to_string).unwrap_or_default();
    let more: String = more.split("\n\n").skip(1).map(|paragraph| wrap(paragraph) + "\n").collect();
    let help =
        Arg::new("help").short('h').long("help").action(ArgAction::HelpShort).help("Print help").display_order(900);
    command
        .mut_subcommands(compact)
        .disable_help_flag(true)
        .disable_help_subcommand(true)
        .arg(help.help_heading(GLOBAL))
        .help_template(format!(
            "{{about-with-newline}}\n{more}{{usage-heading}} {{usage}}\n\n{{all-args}}{{after-help}}"
        ))
}

fn wrap(text: &str) -> String {
    let mut lines = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > WIDTH {
            lines.push('\n');
            used = 0;
        } else if used > 0 {
            lines.push(' ');
            used += 1;
        }
        lines += word;
        used += length;
    }
    lines + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_whole() {
        let text = "word ".repeat(40);
        let wrapped = wrap(&text);
        assert_eq!(wrapped.lines().map(str::len).collect::<Vec<_>>(), [79, 79, 39]);
        assert_eq!(wrapped.split_whitespace().count(), 40);
    }
}
