//! `ado up`: start the local controller and worker.

use serde_json::json;

use super::Global;
use super::error::Error;
use super::output::print;
use super::session::App;
use crate::config::Flags;
use crate::local::{self, Holder, Role, holder};

/// Start this machine's controller and worker in the background
///
/// Every command that needs them does this by itself.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(global: Global, _args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    local::ensure(&app.home, &app.env).await?;
    let controller = local::live_endpoint(&app.home);
    let worker = match holder(&app.home.lock(Role::Worker)) {
        Holder::Process(pid) => Some(pid),
        Holder::Unnamed | Holder::Nobody => None,
    };
    let where_it_is = controller.as_ref().map(|at| json!({ "pid": at.pid, "quic": at.quic, "http": at.http }));
    let json = json!({ "home": app.home.path(), "controller": where_it_is, "worker": { "pid": worker } });
    print(app.global.output, &json, || {
        let mut text = String::new();
        if let Some(controller) = &controller {
            text += &format!("controller  {}  pid {}\n", controller.quic.join(", "), controller.pid);
            if let Some(http) = &controller.http {
                text += &format!("http        http://{http}\n");
            }
        }
        if let Some(pid) = worker {
            text += &format!("worker      pid {pid}\n");
        }
        text + &format!("home        {}\n", app.home.path().display())
    })?;
    Ok(0)
}
