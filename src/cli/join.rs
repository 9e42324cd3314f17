//! `ado join`: become a member of a mesh elsewhere.

use ado_certs::JoinString;
use ado_proto::ids::is_name;
use serde_json::json;

use super::Global;
use super::error::{Error, Kind};
use super::output::print;
use super::session::{App, current, user_name};
use crate::config::{self, Flags};
use crate::json::rfc3339;

/// Join a mesh: exchange a join string for an identity
///
/// The mesh becomes a context of that name; the first one is where `--remote` goes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What `ado token create` printed
    join: JoinString,
    /// Be called this; the token may fix another name
    #[arg(long)]
    name: Option<String>,
    /// Call the mesh this
    #[arg(long, value_name = "NAME", default_value = config::REMOTE)]
    context_name: String,
}

pub(crate) async fn run(mut global: Global, args: Args) -> Result<u8, Error> {
    // Here `--context` names the mesh that is joined.
    let context = global.context.take().unwrap_or(args.context_name);
    if !is_name(&context) || context == config::LOCAL {
        return Err(Error::usage(format!("`{context}` cannot name a mesh elsewhere")));
    }
    let app = App::new(global, Flags::default())?;
    let name = args.name.unwrap_or_else(user_name);
    let (identity, joined) = app.join(&args.join, &name, &context).await?;
    if current(&app.home).is_none() {
        let path = app.home.current_context();
        std::fs::write(&path, &context)
            .map_err(|error| Error::new(Kind::Local, format!("cannot write {}", path.display())).because(error))?;
    }
    let (who, until) = (identity.principal().to_string(), rfc3339(identity.not_after()));
    let json = json!({ "context": context, "identity": who, "controllers": joined.controllers, "notAfter": until });
    let meant = if current(&app.home).as_deref() == Some(&*context) {
        "--remote".into()
    } else {
        format!("--context {context}")
    };
    print(app.global.output, &json, || {
        format!("joined {} as {who}\ntry it: ado run {meant} 'echo hello'\n", joined.controllers.join(", "))
    })?;
    Ok(0)
}
