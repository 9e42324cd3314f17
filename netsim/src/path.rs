//! Both directions between two ends, and what happens to them over time: the engine all forms share. Pure.

use std::time::Duration;

use crate::command::{Command, Edge, Way};
use crate::link::{Conditions, Event, Link, Packet};
use crate::scenario::Scenario;

/// Two links and a scenario that changes them.
#[derive(Debug)]
pub struct Path<T> {
    links: [Link<T>; 2],
    steps: Vec<Pending>,
    edges: Vec<(Duration, Edge)>,
}

#[derive(Debug)]
struct Pending {
    at: Duration,
    every: Option<Duration>,
    until: Option<Duration>,
    command: Command,
}

/// What comes out of a path.
#[derive(Debug, Clone, PartialEq)]
pub enum Output<T> {
    /// Something happened to a packet.
    Packet(Way, Event<T>),
    /// Something is to happen to the addresses of the near end, at this time. The form that runs the path does it.
    Edge(Duration, Edge),
}

impl<T: Clone> Path<T> {
    /// A path that follows a scenario from time 0, with the scenario's seed.
    pub fn new(name: &str, scenario: &Scenario) -> Self {
        Self::with_seed(scenario.seed, name, scenario)
    }

    /// A path with a seed of its own. The name tells its chance apart from that of others with the same seed.
    pub fn with_seed(seed: u64, name: &str, scenario: &Scenario) -> Self {
        let link = |way: Way| Link::new(seed, format!("{name} {}", way.name()).as_bytes(), Conditions::CLEAR);
        let steps = scenario.steps.iter().map(|step| Pending {
            at: step.at,
            every: step.every,
            until: step.until,
            command: step.command.clone(),
        });
        let mut path = Self { links: [link(Way::Up), link(Way::Down)], steps: steps.collect(), edges: Vec::new() };
        path.advance(Duration::ZERO);
        path
    }

    /// One direction.
    pub fn link(&self, way: Way) -> &Link<T> {
        &self.links[way as usize]
    }

    /// One direction, to change it by hand.
    pub fn link_mut(&mut self, way: Way) -> &mut Link<T> {
        &mut self.links[way as usize]
    }

    /// Puts a packet in at one end.
    pub fn send(&mut self, now: Duration, way: Way, packet: Packet, payload: T) -> u64 {
        self.advance(now);
        self.links[way as usize].send(now, packet, payload)
    }

    /// Does what a command says, now.
    pub fn apply(&mut self, now: Duration, command: &Command) {
        self.advance(now);
        self.apply_at(now, command);
    }

    /// When something will happen if nothing is put in.
    pub fn next_at(&self) -> Option<Duration> {
        let steps = self.steps.iter().map(|step| step.at);
        let edges = self.edges.iter().map(|(at, _)| *at);
        self.links.iter().filter_map(Link::next_at).chain(steps).chain(edges).min()
    }

    /// The next thing that happened until now. Call it until there is none.
    pub fn poll(&mut self, now: Duration) -> Option<Output<T>> {
        self.advance(now);
        if !self.edges.is_empty() {
            let (at, edge) = self.edges.remove(0);
            return Some(Output::Edge(at, edge));
        }
        // In order of time; what happened both ways at once, up first.
        let [up, down] = Way::BOTH.map(|way| self.link(way).next_at());
        let ways = match (up, down) {
            (Some(up), Some(down)) if down < up => [Way::Down, Way::Up],
            _ => Way::BOTH,
        };
        ways.into_iter().find_map(|way| Some(Output::Packet(way, self.links[way as usize].poll(now)?)))
    }

    fn advance(&mut self, now: Duration) {
        // Steps of the same time in the order they were written.
        while let Some((index, at)) = self.steps.iter().map(|step| step.at).enumerate().min_by_key(|(_, at)| *at) {
            if at > now {
                break;
            }
            let command = self.steps[index].command.clone();
            self.apply_at(at, &command);
            let step = &mut self.steps[index];
            match step.every.map(|every| at + every).filter(|next| step.until.is_none_or(|until| *next <= until)) {
                Some(next) => step.at = next,
                None => drop(self.steps.remove(index)),
            }
        }
        for link in &mut self.links {
            link.advance(now);
        }
    }

    fn apply_at(&mut self, at: Duration, command: &Command) {
        match command {
            Command::Set { way, changes } => self.each(*way, |link| {
                let mut conditions = link.conditions().clone();
                for change in changes {
                    change.apply(&mut conditions);
                }
                link.set(at, conditions);
            }),
            Command::Profile(profile) => {
                for way in Way::BOTH {
                    self.links[way as usize].set(at, profile.conditions(way));
                }
            }
            Command::Cut { way, cut, lasts } => self.each(*way, |link| link.cut(at, *cut, *lasts)),
            Command::Heal { way, protocol } => self.each(*way, |link| link.heal(at, *protocol)),
            Command::Edge(edge) => self.edges.push((at, *edge)),
        }
    }

    fn each(&mut self, way: Option<Way>, mut change: impl FnMut(&mut Link<T>)) {
        for one in Way::BOTH.into_iter().filter(|one| way.is_none_or(|way| way == *one)) {
            change(&mut self.links[one as usize]);
        }
    }
}
