//! What is done to a mesh, and when: drawn from a seed before the run begins. Pure.

use std::fmt;
use std::time::Duration;

/// SplitMix64 (Steele, Lea and Flood, 2014): all of it is one word.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.roll(most - least + 1))
    }
}

/// A part of the mesh that can be killed and stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Controller,
    Worker,
    Guard,
    Agent,
    Viewer,
}

/// One thing that is done. Which of several is meant is `pick`, modulo as many as there are then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL. What the mesh itself does not start again comes back after this.
    Kill(Part, Duration),
    /// SIGSTOP, and SIGCONT after this.
    Freeze(Part, Duration),
    FlushRedis,
    KillRedis(Duration),
    FreezeRedis(Duration),
    /// SIGKILL to the server.
    CrashPostgres(Duration),
    /// Asked to end at once, as an administrator's restart does.
    RestartPostgres,
    /// Every session is ended.
    TerminateBackends,
    /// Its file system is full for this long.
    FillDisk(Duration),
    /// Packets that go this way are lost; of everybody, or of half.
    Cut {
        to_controller: bool,
        all: bool,
        length: Duration,
    },
}

/// A fault, when it comes, and which of several it hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) pick: u64,
    pub(crate) fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:7.1} s  {:?} ({})", self.at.as_secs_f64(), self.fault, self.pick % 100)
    }
}

/// What is left out of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Menu {
    /// The database lies on a file system that can be filled.
    pub(crate) disk: bool,
}

/// One fault every `every`, for `length`.
pub(crate) fn schedule(seed: u64, length: Duration, every: Duration, menu: Menu) -> Vec<Planned> {
    let mut dice = Dice::new(seed);
    let count = u32::try_from(length.as_millis() / every.as_millis()).expect("a short run");
    let plan = |number: u32| {
        let jitter = dice.between(0, u64::try_from(every.as_millis() / 2).expect("short"));
        Planned { at: every * number + jitter, pick: dice.roll(1 << 32), fault: draw(&mut dice, menu) }
    };
    (1..=count).map(plan).collect()
}

/// Kills most of all; what costs everybody seconds less often.
fn draw(dice: &mut Dice, menu: Menu) -> Fault {
    let away = dice.between(100, 1500);
    let frozen = dice.between(200, 6000);
    match dice.roll(100) {
        0..=19 => Fault::Kill(Part::Worker, away),
        20..=28 => Fault::Freeze(Part::Worker, frozen),
        29..=36 => Fault::Kill(Part::Guard, away),
        37..=40 => Fault::Freeze(Part::Guard, frozen),
        41..=47 => Fault::Kill(Part::Agent, away),
        48..=50 => Fault::Freeze(Part::Agent, frozen),
        51..=59 => Fault::Kill(Part::Viewer, away),
        60..=62 => Fault::Freeze(Part::Viewer, frozen),
        63..=70 => Fault::Kill(Part::Controller, away),
        71..=74 => Fault::Freeze(Part::Controller, frozen),
        75..=78 => Fault::FlushRedis,
        79..=81 => Fault::KillRedis(frozen),
        82..=83 => Fault::FreezeRedis(frozen),
        84..=86 => Fault::CrashPostgres(away),
        87..=87 => Fault::RestartPostgres,
        88..=91 => Fault::TerminateBackends,
        92..=93 if menu.disk => Fault::FillDisk(frozen / 2),
        _ => Fault::Cut { to_controller: dice.roll(2) == 0, all: dice.roll(3) == 0, length: frozen },
    }
}

#[test]
fn a_seed_is_a_schedule() {
    let (length, every) = (Duration::from_secs(180), Duration::from_secs(1));
    let drawn = |seed| schedule(seed, length, every, Menu { disk: true });
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    assert_eq!(drawn(1).len(), 180);
    assert!(drawn(1).windows(2).all(|pair| pair[0].at < pair[1].at));
    let all: Vec<_> = (0..20).flat_map(drawn).map(|planned| planned.fault).collect();
    for fault in [Fault::FlushRedis, Fault::RestartPostgres, Fault::TerminateBackends] {
        assert!(all.contains(&fault), "{fault:?} is never drawn");
    }
    let kinds = |of: fn(&Fault) -> bool| all.iter().filter(|fault| of(fault)).count();
    assert!(kinds(|fault| matches!(fault, Fault::FillDisk(_))) > 20);
    assert!(kinds(|fault| matches!(fault, Fault::Kill(..))) * 2 > all.len());
    let small = schedule(1, length, every, Menu { disk: false });
    assert!(small.iter().all(|planned| !matches!(planned.fault, Fault::FillDisk(_))));
}
