//! `ado audit`: who asked for what, and what was refused.

use ado_proto::Timestamp;
use ado_proto::request::{AuditLine, ListAudit};
use serde_json::{Value, json};

use super::Global;
use super::columns::{self, Column, Side, Table, column};
use super::error::Error;
use super::output::{Format, print, scene};
use super::session::App;
use super::values::{self, Since};
use crate::config::Flags;
use crate::json::rfc3339;

/// Most lines of one request.
const PAGE: usize = 1000;

/// Show who asked for what, and what was refused
///
/// For administrators. The newest line is the last. What was refused again and again is one line with a count.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ado audit --refused --since 1h              what nobody was let do lately\n  ado audit --who user/ann --action Submit    what ann has submitted\n  ado audit --about task-7k2m9x0qvb -o json"
)]
pub(crate) struct Args {
    /// Only what somebody did whose identity contains this: user/ann
    #[arg(long, value_name = "TEXT")]
    who: Option<String>,
    /// Only requests of this name: Submit, SetDesired, Enrol
    #[arg(long, value_name = "REQUEST")]
    action: Option<String>,
    /// Only lines whose target or result contains this
    #[arg(long, value_name = "TEXT")]
    about: Option<String>,
    /// Only what was refused
    #[arg(long)]
    refused: bool,
    /// Begin this long ago (10m) or at this instant (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = values::since)]
    since: Option<Since>,
    /// Show at most this many lines, the newest
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Show these columns
    #[arg(long, value_name = "COLUMN", value_delimiter = ',', value_parser = columns::names(&COLUMNS))]
    columns: Vec<String>,
    /// Leave out the line with the names of the columns
    #[arg(long)]
    no_headers: bool,
}

const DEFAULT: [&str; 6] = ["time", "who", "action", "target", "times", "result"];

static COLUMNS: [Column<AuditLine>; 8] = [
    // A second is close enough for people.
    column("time", "TIME", Side::Left, 20, 20, 0, |line, _| {
        rfc3339(Timestamp(line.time.0 - line.time.0.rem_euclid(1_000_000)))
    }),
    column("number", "NUMBER", Side::Right, 6, 10, 9, |line, _| line.no.to_string()),
    column("namespace", "NAMESPACE", Side::Left, 9, 20, 8, |line, _| line.namespace.to_string()),
    column("who", "WHO", Side::Left, 12, 63, 0, |line, _| line.principal.clone()),
    column("action", "ACTION", Side::Left, 8, 16, 0, |line, _| line.action.clone()),
    column("target", "TARGET", Side::Left, 8, 40, 3, |line, _| line.target.clone()),
    column("times", "TIMES", Side::Right, 5, 8, 2, |line, _| line.count.to_string()),
    column("result", "RESULT", Side::Left, 8, 100, 0, |line, _| line.result.clone()),
];

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let now = app.env.now();
    let mut lines: Vec<AuditLine> = Vec::new();
    loop {
        let wanted = ListAudit {
            principal: args.who.clone(),
            action: args.action.clone(),
            about: args.about.clone(),
            refused: args.refused,
            since: args.since.map(|since| since.at(now)),
            before: lines.last().map(|line| line.no),
            limit: u32::try_from(PAGE.min(args.limit - lines.len())).expect("a page is small"),
        };
        if wanted.limit == 0 {
            break;
        }
        let page = session.client.audit(&wanted).await?;
        if page.is_empty() {
            break;
        }
        lines.extend(page);
    }
    session.close().await;
    lines.reverse();
    let json: Vec<Value> = lines.iter().map(to_json).collect();
    let table = Table::new(&COLUMNS, &args.columns, &DEFAULT);
    print(app.global.output, &json, || table.render(&lines, !args.no_headers, scene(now)))?;
    if lines.is_empty() && app.global.output == Format::Text && !app.global.quiet {
        eprintln!("nothing in the audit log");
    }
    Ok(0)
}

fn to_json(line: &AuditLine) -> Value {
    json!({
        "number": line.no,
        "time": rfc3339(line.time),
        "namespace": line.namespace,
        "principal": line.principal,
        "action": line.action,
        "target": line.target,
        "result": line.result,
        "count": line.count,
    })
}
