//! `ado down`: stop the local controller and worker.

use serde_json::json;

use super::Global;
use super::error::Error;
use super::output::print;
use super::session::App;
use crate::config::Flags;
use crate::local;

/// Stop the controller and the worker of this machine
///
/// Tasks that run are handed back and wait; the next command that needs the two starts them again.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(global: Global, _args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let stopped = local::down(&app.home).await?;
    let json: Vec<_> = stopped.iter().map(|(role, pid)| json!({ "role": role.as_str(), "pid": pid })).collect();
    print(app.global.output, &json, || match &stopped[..] {
        [] => "nothing was running\n".into(),
        stopped => stopped.iter().map(|(role, pid)| format!("stopped the {} (pid {pid})\n", role.as_str())).collect(),
    })?;
    Ok(0)
}
