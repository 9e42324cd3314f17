//! `ado token`: let others in, and out.

use std::time::Duration;

use ado_proto::request::{CreateToken, TokenInfo, WorkerBounds};
use ado_proto::{Namespace, Principal, Role, Timestamp};
use serde_json::{Value, json};

use super::Global;
use super::error::Error;
use super::output::{one_line, print};
use super::session::App;
use super::values;
use crate::config::Flags;
use crate::json::rfc3339;

/// Make, list and revoke join tokens and API keys
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a token and print its join string: the only time it is shown
    #[command(
        after_help = "What --pool, --agent, --label and --max-slots do not limit, a worker says freely of itself.\n\nExample:\n  ado token create --role worker --pool gpu --agent shell --max-slots 8"
    )]
    Create(Create),
    /// List tokens, without their secrets
    List,
    /// Make a token useless; certificates it gave stay good
    Revoke {
        /// Its id, from `ado token list`
        id: String,
    },
    /// Deny every certificate of an identity, at once
    RevokeIdentity {
        /// Who: `ado://<namespace>/<role>/<name>`
        identity: Principal,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// What its holder becomes: admin, user, viewer, worker
    #[arg(long, default_value = "user")]
    role: Role,
    /// The holder's name; default: the holder chooses
    #[arg(long)]
    name: Option<String>,
    /// Good for this many holders
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,
    /// Good for any number of holders: an API key
    #[arg(long, conflicts_with = "uses")]
    unlimited: bool,
    /// Good for this long (30m, 24h, 30d)
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "24h")]
    ttl: Duration,
    /// A worker may belong to this pool only; give it again for more
    #[arg(long, value_name = "NAME")]
    pool: Vec<String>,
    /// A worker may offer this agent only; give it again for more
    #[arg(long, value_name = "NAME")]
    agent: Vec<String>,
    /// A worker may carry this label only; give it again for more
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::pair)]
    label: Vec<(String, String)>,
    /// A worker may run at most this many tasks at a time
    #[arg(long, value_name = "N")]
    max_slots: Option<u32>,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let format = app.global.output;
    match args.command {
        Command::Create(create) => {
            let request = CreateToken {
                role: create.role,
                namespace: Namespace(app.global.namespace.clone().unwrap_or_else(|| Namespace::default().0)),
                name: create.name,
                uses: (!create.unlimited).then_some(create.uses),
                ttl_ms: u64::try_from(create.ttl.as_millis()).unwrap_or(u64::MAX),
                bounds: WorkerBounds {
                    pools: create.pool,
                    agents: create.agent,
                    labels: create.label.into_iter().collect(),
                    max_slots: create.max_slots,
                },
            };
            let token = session.client.create_token(&request).await?;
            let json = json!({ "id": token.id, "join": token.join, "expiresAt": rfc3339(token.expires_at) });
            print(format, &json, || token.join.clone())?;
        }
        Command::List => {
            let tokens = session.client.list_tokens().await?;
            let json: Vec<Value> = tokens.iter().map(to_json).collect();
            print(format, &json, || table(&tokens))?;
        }
        Command::Revoke { id } => {
            session.client.revoke_token(&id).await?;
            print(format, &json!({ "id": id, "revoked": true }), || format!("revoked {id}"))?;
        }
        Command::RevokeIdentity { identity } => {
            let identity = identity.to_string();
            let revoked = session.client.revoke_identity(&identity).await?;
            let json = json!({ "identity": identity, "certificates": revoked.certificates });
            print(format, &json, || format!("revoked {} certificates of {identity}", revoked.certificates))?;
        }
    }
    session.close().await;
    Ok(0)
}

fn to_json(token: &TokenInfo) -> Value {
    json!({
        "id": token.id,
        "role": token.role.as_str(),
        "namespace": token.namespace,
        "name": token.name,
        "usesLeft": token.uses_left,
        "createdAt": rfc3339(token.created_at),
        "expiresAt": rfc3339(token.expires_at),
        "createdBy": token.created_by,
        "bounds": {
            "pools": token.bounds.pools,
            "agents": token.bounds.agents,
            "labels": token.bounds.labels,
            "maxSlots": token.bounds.max_slots,
        },
    })
}

fn table(tokens: &[TokenInfo]) -> String {
    let line = |id: &str, role: &str, uses: &str, until: &str, name: &str, by: &str| {
        format!("{id:<11}  {role:<6}  {uses:>4}  {until:<20}  {name:<20}  {by}\n")
    };
    let rows = tokens.iter().map(|token| {
        let uses = token.uses_left.map_or("any".into(), |uses| uses.to_string());
        // A second is close enough for people.
        let until = rfc3339(Timestamp(token.expires_at.0 - token.expires_at.0.rem_euclid(1_000_000)));
        let name = one_line(token.name.as_deref().unwrap_or("-"), 63);
        line(&token.id, token.role.as_str(), &uses, &until, &name, &one_line(&token.created_by, 100))
    });
    std::iter::once(line("TOKEN", "ROLE", "USES", "UNTIL", "NAME", "BY")).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stand_in_columns() {
        let token = TokenInfo {
            id: "eda133672d".into(),
            role: Role::Worker,
            namespace: Namespace::default(),
            name: None,
            uses_left: None,
            created_at: Timestamp(0),
            expires_at: Timestamp(86_400_123_456),
            created_by: "admin/ann".into(),
            bounds: WorkerBounds::default(),
        };
        assert_eq!(
            table(&[token]),
            "TOKEN        ROLE    USES  UNTIL                 NAME                  BY\n\
             eda133672d   worker   any  1970-01-02T00:00:00Z  -                     admin/ann\n",
        );
    }
}
