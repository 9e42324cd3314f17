//! What a worker may say of itself: its token has set bounds to it. Pure.

use ado_proto::ids;
use ado_proto::request::{WorkerBounds, WorkerSession};

/// What of a worker's words its bounds do not allow, and what to do.
pub(super) fn exceeded(bounds: &WorkerBounds, says: &WorkerSession) -> Option<(String, String)> {
    let allowed = |what: &str| format!("its token allows {what}");
    if !bounds.pools.is_empty() && !bounds.pools.contains(&says.pool) {
        let message = format!("it may not belong to pool `{}`: {}", says.pool, allowed(&bounds.pools.join(", ")));
        return Some((message, format!("ado worker --pool {}", bounds.pools[0])));
    }
    let agents = &bounds.agents;
    if let Some(agent) = says.agents.iter().find(|agent| !agents.is_empty() && !agents.contains(agent)) {
        let message = format!("it may not offer agent `{agent}`: {}", allowed(&agents.join(", ")));
        return Some((message, format!("ado worker --agents {}", agents.join(","))));
    }
    let labels = &bounds.labels;
    if let Some((name, value)) =
        says.labels.iter().find(|(name, value)| !labels.is_empty() && labels.get(*name) != Some(value))
    {
        let pairs: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let message = format!("it may not carry label `{name}={value}`: {}", allowed(&pairs.join(", ")));
        return Some((message, format!("ado worker --label {}", pairs.join(" --label "))));
    }
    let most = bounds.max_slots.filter(|most| says.slots > *most)?;
    let message = format!("it may not have {} slots: {}", says.slots, allowed(&format!("at most {most}")));
    Some((message, format!("ado worker --slots {most}")))
}

/// What is wrong with bounds, whoever they are for.
pub(super) fn wrong(bounds: &WorkerBounds) -> Option<String> {
    let names = bounds.pools.iter().chain(&bounds.agents).chain(bounds.labels.keys());
    if let Some(name) = names.into_iter().find(|name| !ids::is_name(name)) {
        return Some(format!("`{name}` is not a name: 1 to 63 of a-z A-Z 0-9 . _ @ -"));
    }
    (bounds.max_slots == Some(0)).then(|| "a worker with 0 slots is of no use: give at least 1".into())
}

#[cfg(test)]
mod tests {
    use ado_proto::Incarnation;
    use ado_proto::spec::Containment;
    use uuid::Uuid;

    use super::*;

    fn says() -> WorkerSession {
        WorkerSession {
            incarnation: Incarnation(Uuid::from_u128(1)),
            name: "w".into(),
            pool: "gpu".into(),
            slots: 4,
            agents: vec!["shell".into(), "noop".into()],
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            containment: Containment::Subreaper,
            build: String::new(),
            resources: Default::default(),
        }
    }

    #[test]
    fn what_is_not_limited_may_be_said() {
        assert_eq!(exceeded(&WorkerBounds::default(), &says()), None);
        let exactly = WorkerBounds {
            pools: vec!["other".into(), "gpu".into()],
            agents: vec!["noop".into(), "shell".into(), "claude-code".into()],
            labels: [("zone".to_owned(), "a".to_owned()), ("more".to_owned(), "x".to_owned())].into(),
            max_slots: Some(4),
        };
        assert_eq!(exceeded(&exactly, &says()), None, "it need not say all it may");
    }

    #[track_caller]
    fn check(bounds: WorkerBounds, message: &str, hint: &str) {
        assert_eq!(exceeded(&bounds, &says()), Some((message.into(), hint.into())));
    }

    #[test]
    fn what_is_beyond_is_named_with_what_to_do() {
        let some = WorkerBounds::default;
        check(
            WorkerBounds { pools: vec!["cpu".into()], ..some() },
            "it may not belong to pool `gpu`: its token allows cpu",
            "ado worker --pool cpu",
        );
        check(
            WorkerBounds { agents: vec!["noop".into()], ..some() },
            "it may not offer agent `shell`: its token allows noop",
            "ado worker --agents noop",
        );
        for label in [("zone", "b"), ("other", "a")] {
            let pair = format!("{}={}", label.0, label.1);
            check(
                WorkerBounds { labels: [(label.0.to_owned(), label.1.to_owned())].into(), ..some() },
                &format!("it may not carry label `zone=a`: its token allows {pair}"),
                &format!("ado worker --label {pair}"),
            );
        }
        check(
            WorkerBounds { max_slots: Some(3), ..some() },
            "it may not have 4 slots: its token allows at most 3",
            "ado worker --slots 3",
        );
    }

    #[test]
    fn bounds_are_names_and_numbers() {
        assert_eq!(wrong(&WorkerBounds::default()), None);
        let odd = WorkerBounds { labels: [("-x".to_owned(), String::new())].into(), ..WorkerBounds::default() };
        assert!(wrong(&odd).is_some_and(|error| error.contains("`-x`")));
        assert!(wrong(&WorkerBounds { max_slots: Some(0), ..WorkerBounds::default() }).is_some());
    }
}
