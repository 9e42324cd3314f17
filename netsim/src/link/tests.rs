use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn link(seed: u64, conditions: Conditions) -> Link<u64> {
    Link::new(seed, b"test", conditions)
}

/// Sends packets of `size` every `every`, numbered, and takes out everything.
fn run(mut link: Link<u64>, packets: u64, every: Duration, size: usize) -> (Vec<Event<u64>>, Totals) {
    let mut events = Vec::new();
    for number in 0..packets {
        let now = every * u32::try_from(number).unwrap();
        while let Some(event) = link.poll(now) {
            events.push(event);
        }
        assert_eq!(link.send(now, Packet::udp(size), number), number);
    }
    drain(&mut link, &mut events);
    (events, link.totals())
}

fn drain(link: &mut Link<u64>, events: &mut Vec<Event<u64>>) {
    while let Some(at) = link.next_at() {
        while let Some(event) = link.poll(at) {
            events.push(event);
        }
    }
}

fn delivered(events: &[Event<u64>]) -> Vec<u64> {
    events.iter().filter(|event| matches!(event.what, What::Delivered { .. })).map(|event| event.number).collect()
}

fn delays(events: &[Event<u64>]) -> Vec<f64> {
    let mut all: Vec<_> = events.iter().filter(|event| matches!(event.what, What::Delivered { .. })).collect();
    all.sort_by_key(|event| event.number);
    all.iter().map(|event| (event.at - event.came_at).as_secs_f64() * 1e3).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Correlation of neighbours.
fn correlation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let variance: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    values.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum::<f64>() / variance
}

/// Binomially distributed counts are this close to the mean in all but one of 15,000 seeds.
fn assert_likely(count: u64, of: u64, share: f64) {
    let (mean, deviation) = (of as f64 * share, (of as f64 * share * (1.0 - share)).sqrt());
    assert!((count as f64 - mean).abs() < 4.0 * deviation, "{count} of {of}, expected about {mean}");
}

#[test]
fn a_clear_link_does_nothing() {
    let (events, totals) = run(link(1, Conditions::CLEAR), 10, MS, 100);
    assert!(events.iter().all(|event| event.at == event.came_at));
    assert_eq!(delivered(&events), (0..10).collect::<Vec<_>>());
    assert_eq!((totals.delivered, totals.bytes_delivered, totals.inside), (10, 1000, 0));
}

#[test]
fn random_loss_is_as_large_as_it_says_and_alone() {
    const PACKETS: u64 = 200_000;
    let (events, totals) = run(link(1, Conditions { loss: 0.02, ..Conditions::CLEAR }), PACKETS, MS, 100);
    let lost = totals.dropped[Why::Loss as usize];
    assert_likely(lost, PACKETS, 0.02);
    // Of the losses, as many follow another as chance says.
    let dropped: Vec<_> =
        events.iter().filter(|event| event.what == What::Dropped(Why::Loss)).map(|event| event.number).collect();
    let pairs = dropped.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
    assert_likely(pairs as u64, lost, 0.02);
    assert_eq!(lost, 3898, "another count with the same seed: recorded runs no longer replay");
}

#[test]
fn bursts_are_as_long_and_as_many_as_they_say() {
    const PACKETS: u64 = 400_000;
    let bursts = Bursts { enter: 0.01, leave: 0.2, bad: 1.0, good: 0.0 };
    let (events, totals) = run(link(1, Conditions { bursts: Some(bursts), ..Conditions::CLEAR }), PACKETS, MS, 100);
    let lost: Vec<_> =
        events.iter().filter(|event| event.what == What::Dropped(Why::Burst)).map(|event| event.number).collect();
    let share = lost.len() as f64 / PACKETS as f64;
    assert!((share / bursts.mean_loss() - 1.0).abs() < 0.05, "{share} lost, expected {}", bursts.mean_loss());
    let count = 1 + lost.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
    let length = lost.len() as f64 / count as f64;
    assert!((length - 5.0).abs() < 0.2, "bursts of {length}, expected 1/0.2");
    assert_eq!(totals.dropped[Why::Loss as usize], 0);
}

#[test]
fn what_else_is_drawn_changes_no_loss() {
    let alone = Conditions { loss: 0.1, ..Conditions::CLEAR };
    let mut with_all = Conditions { delay: 50 * MS, duplicate: 0.1, ..alone.clone() };
    with_all.jitter = Jitter { size: 20 * MS, reorder: true, ..Jitter::NONE };
    let lost = |conditions, seed| {
        let (mut events, _) = run(link(seed, conditions), 5000, MS, 100);
        events.retain(|event| event.what == What::Dropped(Why::Loss));
        events.iter().map(|event| event.number).collect::<Vec<_>>()
    };
    assert_eq!(lost(alone.clone(), 1), lost(with_all, 1));
    assert_ne!(lost(alone.clone(), 1), lost(alone, 2));
}

#[test]
fn jitter_has_its_shape_and_its_correlation() {
    const PACKETS: u64 = 50_000;
    for wanted in [0.0, 0.5, 0.9] {
        for distribution in [Distribution::Uniform, Distribution::Normal, Distribution::Exponential] {
            let jitter = Jitter { size: 10 * MS, distribution, correlation: wanted, reorder: true };
            let conditions = Conditions { delay: 100 * MS, jitter, ..Conditions::CLEAR };
            let delays = delays(&run(link(1, conditions), PACKETS, MS, 100).0);
            // The standard deviation each has; and what the mapping makes of the correlation: exact for the uniform one.
            let (mean_is, deviation_is, correlation_is) = match distribution {
                Distribution::Uniform => (100.0, 5.774, 6.0 / std::f64::consts::PI * (wanted / 2.0).asin()),
                Distribution::Normal => (100.0, 10.0, wanted),
                Distribution::Exponential => (110.0, 10.0, wanted),
            };
            let name = format!("{distribution:?}, correlation {wanted}");
            let found = mean(&delays);
            assert!((found - mean_is).abs() < 0.7, "{name}: mean {found}, expected {mean_is}");
            let deviation = mean(&delays.iter().map(|delay| (delay - found).powi(2)).collect::<Vec<_>>()).sqrt();
            assert!((deviation - deviation_is).abs() < 0.5, "{name}: deviation {deviation}, expected {deviation_is}");
            let neighbours = correlation(&delays);
            assert!((neighbours - correlation_is).abs() < 0.08, "{name}: {neighbours}, expected {correlation_is}");
            let (least, most) = delays.iter().fold((f64::MAX, 0.0f64), |(a, b), delay| (a.min(*delay), b.max(*delay)));
            match distribution {
                Distribution::Uniform => assert!(least >= 90.0 && most <= 110.0, "{name}: {least} to {most}"),
                Distribution::Exponential => assert!(least >= 100.0, "{name}: {least}"),
                Distribution::Normal => {}
            }
        }
    }
}

#[test]
fn packets_overtake_only_where_they_may() {
    let order = |reorder| {
        let jitter = Jitter { size: 20 * MS, reorder, ..Jitter::NONE };
        delivered(&run(link(1, Conditions { delay: 50 * MS, jitter, ..Conditions::CLEAR }), 1000, MS, 100).0)
    };
    assert!(order(false).is_sorted());
    let overtaken = order(true).windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(overtaken > 300, "{overtaken} of 1000");
}

#[test]
fn copies_are_as_many_as_they_say() {
    let (events, totals) = run(link(1, Conditions { duplicate: 0.05, ..Conditions::CLEAR }), 100_000, MS, 100);
    assert_likely(totals.duplicated, 100_000, 0.05);
    assert_eq!(totals.delivered, 100_000 + totals.duplicated);
    let copies = events.iter().filter(|event| matches!(event.what, What::Delivered { copy: true, .. })).count();
    assert_eq!(copies as u64, totals.duplicated);
}

#[test]
fn a_full_queue_drops_what_comes_last() {
    for (queue, fits) in [(Limit::Packets(10), 10), (Limit::Bytes(12_500), 10), (Limit::Time(100 * MS), 10)] {
        let conditions = Conditions { rate: Rate::Bits(1_000_000), queue, ..Conditions::CLEAR };
        // 1250 bytes take 10 ms; one is being sent.
        let (events, totals) = run(link(1, conditions), 30, Duration::ZERO, 1250);
        assert_eq!(delivered(&events), (0..=fits).collect::<Vec<_>>(), "{queue:?}");
        assert_eq!(totals.dropped[Why::QueueFull as usize], 29 - fits, "{queue:?}");
        let last = events.iter().rfind(|event| matches!(event.what, What::Delivered { .. })).unwrap();
        assert_eq!(last.at, 110 * MS, "{queue:?}");
    }
}

#[test]
fn a_rate_that_changes_holds_for_what_is_half_sent() {
    let mut link = link(1, Conditions { rate: Rate::Bits(1_000_000), ..Conditions::CLEAR });
    link.send(Duration::ZERO, Packet::udp(1250), 0);
    link.send(Duration::ZERO, Packet::udp(1250), 1);
    // Half of the first is out after 5 ms; ten times as fast the rest takes 0.5 ms.
    link.set(5 * MS, Conditions { rate: Rate::Bits(10_000_000), ..Conditions::CLEAR });
    let mut events = Vec::new();
    drain(&mut link, &mut events);
    assert_eq!(events.iter().map(|event| event.at.as_micros()).collect::<Vec<_>>(), [5500, 6500]);
}

#[test]
fn large_packets_are_dropped_silently() {
    let mut link = link(1, Conditions { mtu: Some(1280), ..Conditions::CLEAR });
    link.send(Duration::ZERO, Packet::udp(1280), 0);
    link.send(Duration::ZERO, Packet::udp(1281), 1);
    let mut events = Vec::new();
    drain(&mut link, &mut events);
    assert_eq!(delivered(&events), [0]);
    assert_eq!(link.totals().dropped[Why::TooLarge as usize], 1);
}

#[test]
fn blackouts_swallow_what_they_name_while_they_last() {
    let tcp = |size| Packet { protocol: Protocol::Tcp, ..Packet::udp(size) };
    let arrives = |link: &mut Link<u64>, at: Duration, packet| {
        link.send(at, packet, 0);
        std::iter::from_fn(|| link.poll(at)).any(|event| matches!(event.what, What::Delivered { .. }))
    };
    let mut link = link(1, Conditions::CLEAR);
    link.cut(10 * MS, Cut::default(), Some(5 * MS));
    assert!(!arrives(&mut link, 10 * MS, tcp(1)) && !arrives(&mut link, 14 * MS, Packet::udp(1)));
    assert!(arrives(&mut link, 15 * MS, Packet::udp(1)), "it is over");
    link.cut(20 * MS, Cut { protocol: Some(Protocol::Udp), over: None }, None);
    assert!(!arrives(&mut link, 20 * MS, Packet::udp(1)) && arrives(&mut link, 20 * MS, tcp(1)));
    link.heal(20 * MS, Some(Protocol::Tcp));
    assert!(!arrives(&mut link, 20 * MS, Packet::udp(1)), "another protocol's");
    link.heal(20 * MS, None);
    link.cut(30 * MS, Cut { protocol: None, over: Some(1200) }, None);
    assert!(arrives(&mut link, 30 * MS, Packet::udp(1200)) && !arrives(&mut link, 30 * MS, Packet::udp(1201)));
}

#[test]
fn what_is_under_way_arrives_in_a_blackout() {
    let mut link = link(1, Conditions { delay: 50 * MS, ..Conditions::CLEAR });
    link.send(Duration::ZERO, Packet::udp(1), 0);
    link.cut(10 * MS, Cut::default(), None);
    assert_eq!(link.poll(50 * MS).map(|event| event.number), Some(0));
}

#[test]
fn a_trace_delivers_at_its_moments() {
    // Two opportunities at 10 ms, one at 20 ms; it repeats after 20 ms.
    let rate = Rate::Trace(Trace::parse("10\n10\n20\n").unwrap().into());
    let mut link = link(1, Conditions { rate: rate.clone(), ..Conditions::CLEAR });
    // 1000 and 500 bytes share an opportunity; 1600 take two, and what is left of the second serves the 700.
    for (number, size) in [1000, 500, 1600, 700, 1500].into_iter().enumerate() {
        link.send(Duration::ZERO, Packet::udp(size), number as u64);
    }
    let mut events = Vec::new();
    drain(&mut link, &mut events);
    let at: Vec<_> = events.iter().map(|event| event.at.as_millis()).collect();
    assert_eq!(at, [10, 10, 20, 20, 30]);
    assert_eq!(rate.mean(), Some(1_800_000));
    // What comes when an opportunity is, comes too late for it.
    link.send(50 * MS, Packet::udp(1500), 5);
    assert_eq!(link.next_at(), Some(60 * MS));
}

#[test]
fn traces_say_what_is_wrong_with_them() {
    let wrong = |text| Trace::parse(text).unwrap_err().to_string();
    assert_eq!(wrong("1\nx\n"), "line 2: `x` is no time in whole milliseconds");
    assert_eq!(wrong("5\n4\n"), "line 2: 4 ms is before the line above, 5 ms");
    assert!(wrong("0\n").starts_with("a trace needs a line with a time above 0"));
}

/// CoDel in a steady overload drops after an interval, then at `interval / sqrt(count)`.
#[test]
fn codel_drops_ever_faster() {
    // 12 Mbit/s, a packet of 1500 bytes each millisecond; twice as many come.
    let conditions = Conditions {
        rate: Rate::Bits(12_000_000),
        queue: Limit::Packets(100_000),
        discipline: Discipline::Codel { ecn: false },
        ..Conditions::CLEAR
    };
    let (events, _) = run(link(1, conditions), 6000, MS / 2, 1500);
    let dropped: Vec<_> = events
        .iter()
        .filter(|event| event.what == What::Dropped(Why::Codel))
        .map(|event| event.at.as_millis() as f64)
        .collect();
    // The wait passes 5 ms at about 10 ms.
    assert!((110.0..=114.0).contains(&dropped[0]), "the first at {}", dropped[0]);
    let mut expected = dropped[0];
    for (count, at) in dropped.iter().enumerate().skip(1).take(20) {
        expected += 100.0 / (count as f64).sqrt();
        assert!((at - expected).abs() <= 2.0, "drop {count} at {at}, expected {expected}");
    }
}

#[test]
fn codel_marks_what_can_be_marked() {
    let conditions = Conditions {
        rate: Rate::Bits(12_000_000),
        discipline: Discipline::Codel { ecn: true },
        queue: Limit::Packets(100_000),
        ..Conditions::CLEAR
    };
    let count = |markable| {
        let mut link = link(1, conditions.clone());
        for number in 0..2000u32 {
            link.send(MS / 2 * number, Packet { markable, ..Packet::udp(1500) }, 0);
        }
        let mut events = Vec::new();
        drain(&mut link, &mut events);
        let marked = events.iter().filter(|event| matches!(event.what, What::Delivered { marked: true, .. })).count();
        (marked > 0, link.totals().dropped[Why::Codel as usize] > 0)
    };
    assert_eq!((count(true), count(false)), ((true, false), (false, true)));
}

#[test]
fn codel_leaves_a_burst_alone() {
    let conditions =
        Conditions { rate: Rate::Bits(12_000_000), discipline: Discipline::Codel { ecn: false }, ..Conditions::CLEAR };
    // 60 ms of waiting, which is gone before an interval is over.
    let (events, _) = run(link(1, conditions), 60, Duration::ZERO, 1500);
    assert_eq!(delivered(&events).len(), 60);
}

/// RFC 8289 section 5, as written there: numbers instead of packets, arrays instead of queues.
struct Published {
    first_above_time: u64,
    drop_next: u64,
    count: u32,
    lastcount: u32,
    dropping: bool,
}

impl Published {
    const TARGET: u64 = 5_000_000;
    const INTERVAL: u64 = 100_000_000;
    const MAXPACKET: usize = 1500;

    fn control_law(t: u64, count: u32) -> u64 {
        t + (Self::INTERVAL as f64 / f64::from(count).sqrt()) as u64
    }

    fn dodequeue(&mut self, now: u64, queue: &mut VecDeque<(u64, u64, usize)>) -> (Option<u64>, bool) {
        let Some((number, tstamp, _)) = queue.pop_front() else {
            self.first_above_time = 0;
            return (None, false);
        };
        let bytes: usize = queue.iter().map(|(_, _, size)| size).sum();
        let mut ok_to_drop = false;
        if now - tstamp < Self::TARGET || bytes <= Self::MAXPACKET {
            self.first_above_time = 0;
        } else if self.first_above_time == 0 {
            self.first_above_time = now + Self::INTERVAL;
        } else if now >= self.first_above_time {
            ok_to_drop = true;
        }
        (Some(number), ok_to_drop)
    }

    fn deque(&mut self, now: u64, queue: &mut VecDeque<(u64, u64, usize)>, drops: &mut Vec<u64>) -> Option<u64> {
        let (mut p, mut ok_to_drop) = self.dodequeue(now, queue);
        if self.dropping {
            if !ok_to_drop {
                self.dropping = false;
            }
            while now >= self.drop_next && self.dropping {
                drops.extend(p);
                self.count += 1;
                (p, ok_to_drop) = self.dodequeue(now, queue);
                if !ok_to_drop {
                    self.dropping = false;
                } else {
                    self.drop_next = Self::control_law(self.drop_next, self.count);
                }
            }
        } else if ok_to_drop {
            drops.extend(p);
            (p, _) = self.dodequeue(now, queue);
            self.dropping = true;
            let delta = self.count - self.lastcount;
            self.count = 1;
            if delta > 1 && (now as i64 - self.drop_next as i64) < 16 * Self::INTERVAL as i64 {
                self.count = delta;
            }
            self.drop_next = Self::control_law(now, self.count);
            self.lastcount = self.count;
        }
        p
    }
}

#[derive(Debug, Clone)]
enum Does {
    Send(usize, bool),
    Set(Conditions),
    Cut(Cut, Option<u64>),
    Heal,
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let rate = prop_oneof![
        Just(Rate::Unlimited),
        (50_000..50_000_000u64).prop_map(Rate::Bits),
        Just(Rate::Trace(Trace::parse("0\n3\n3\n9\n20\n").unwrap().into())),
    ];
    let queue = prop_oneof![
        (0..20usize).prop_map(Limit::Packets),
        (0..20_000usize).prop_map(Limit::Bytes),
        (0..200u32).prop_map(|ms| Limit::Time(MS * ms)),
    ];
    let bursts = prop::option::of((0.0..0.2f64, 0.05..1.0f64).prop_map(|(enter, leave)| Bursts {
        enter,
        leave,
        bad: 0.8,
        good: 0.01,
    }));
    let discipline = prop_oneof![Just(Discipline::DropTail), any::<bool>().prop_map(|ecn| Discipline::Codel { ecn })];
    let jitter = (0..50u32, 0..3usize, 0.0..0.99f64).prop_map(|(ms, shape, correlation)| Jitter {
        size: MS * ms,
        distribution: [Distribution::Uniform, Distribution::Normal, Distribution::Exponential][shape],
        correlation,
        reorder: false,
    });
    (0..100u32, jitter, 0.0..0.2f64, bursts, 0.0..0.2f64, rate, queue, discipline, prop::option::of(500..1600usize))
        .prop_map(|(delay, jitter, loss, bursts, duplicate, rate, queue, discipline, mtu)| Conditions {
            delay: MS * delay,
            jitter,
            loss,
            bursts,
            duplicate,
            rate,
            queue,
            discipline,
            mtu,
            blackout: false,
        })
}

fn does() -> impl Strategy<Value = Does> {
    prop_oneof![
        20 => (1..1600usize, any::<bool>()).prop_map(|(size, markable)| Does::Send(size, markable)),
        1 => conditions().prop_map(Does::Set),
        1 => (prop::option::of(0..1500usize), prop::option::of(0..50u64))
            .prop_map(|(over, lasts)| Does::Cut(Cut { protocol: None, over }, lasts)),
        1 => Just(Does::Heal),
    ]
}

/// Carries out what `does` says, at times in microseconds after each other.
fn play(seed: u64, first: Conditions, does: &[(u64, Does)], reorder: bool) -> (Vec<Event<u64>>, Link<u64>) {
    let with = |mut conditions: Conditions| {
        conditions.jitter.reorder = reorder;
        conditions
    };
    let mut link = link(seed, with(first));
    let (mut now, mut events) = (Duration::ZERO, Vec::new());
    for (later, what) in does {
        now += Duration::from_micros(*later);
        while let Some(event) = link.poll(now) {
            events.push(event);
        }
        match what.clone() {
            Does::Send(size, markable) => drop(link.send(now, Packet { markable, ..Packet::udp(size) }, 0)),
            Does::Set(conditions) => link.set(now, with(conditions)),
            Does::Cut(cut, lasts) => link.cut(now, cut, lasts.map(Duration::from_millis)),
            Does::Heal => link.heal(now, None),
        }
        let totals = link.totals();
        let dropped: u64 = totals.dropped.iter().sum();
        assert_eq!(totals.came, totals.delivered - totals.duplicated + dropped + totals.inside);
    }
    drain(&mut link, &mut events);
    (events, link)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever happens to a link: what came is delivered once, or dropped; copies are counted; events are in order of time.
    #[test]
    fn nothing_is_lost_or_made_without_saying_so(seed: u64, first in conditions(),
            does in prop::collection::vec((0..5000u64, does()), 0..200), reorder: bool) {
        let (events, link) = play(seed, first, &does, reorder);
        let totals = link.totals();
        let dropped: u64 = totals.dropped.iter().sum();
        prop_assert_eq!((totals.inside, link.queue()), (0, (0, 0)));
        prop_assert_eq!(totals.came, totals.delivered - totals.duplicated + dropped);
        prop_assert!(events.is_sorted_by_key(|event| event.at));
        let mut firsts: Vec<_> = events
            .iter()
            .filter(|event| !matches!(event.what, What::Delivered { copy: true, .. }))
            .map(|event| event.number)
            .collect();
        if !reorder {
            prop_assert!(delivered(&events).is_sorted(), "overtaken where that is forbidden");
        }
        firsts.sort_unstable();
        prop_assert_eq!(firsts, (0..totals.came).collect::<Vec<_>>());
        prop_assert!(events.iter().all(|event| event.at >= event.came_at));
        // And again: the same to the byte.
        let (again, _) = play(seed, link_first(&does), &does, reorder);
        let (once, _) = play(seed, link_first(&does), &does, reorder);
        prop_assert_eq!(format!("{again:?}"), format!("{once:?}"));
    }

    /// Over any window that begins when a packet is out, no more bytes come out than the rate allows.
    #[test]
    fn the_rate_is_never_exceeded(seed: u64, bits in 10_000..100_000_000u64, codel: bool,
            sends in prop::collection::vec((0..20_000u64, 1..1500usize), 2..150)) {
        let discipline = if codel { Discipline::Codel { ecn: false } } else { Discipline::DropTail };
        let conditions = Conditions { rate: Rate::Bits(bits), delay: 7 * MS, discipline, ..Conditions::CLEAR };
        let does: Vec<_> = sends.iter().map(|(later, size)| (*later, Does::Send(*size, false))).collect();
        let (events, _) = play(seed, conditions, &does, false);
        let out: Vec<_> = events
            .iter()
            .filter(|event| matches!(event.what, What::Delivered { .. }))
            .map(|event| (event.at.as_nanos(), event.size as u128))
            .collect();
        for from in 0..out.len() {
            let mut bytes = 0;
            for (at, size) in &out[from + 1..] {
                bytes += size;
                let allowed = (at - out[from].0) * u128::from(bits) / 8_000_000_000;
                prop_assert!(bytes <= allowed, "{bytes} bytes in {} ns at {bits} bit/s", at - out[from].0);
            }
        }
    }

    /// CoDel drops and sends what the published algorithm does.
    #[test]
    fn codel_is_the_published_one(steps in prop::collection::vec((0..9_000_000u64, 1..1501usize, 0..5u8), 1..600)) {
        let mut codel = Codel::default();
        let mut published =
            Published { first_above_time: 0, drop_next: 0, count: 0, lastcount: 0, dropping: false };
        let (mut ours, mut theirs) = (VecDeque::new(), VecDeque::new());
        let mut now = 0;
        for (number, (later, size, arrivals)) in steps.into_iter().enumerate() {
            now += later;
            for _ in 0..arrivals {
                ours.push_back((number as u64, now, size));
                theirs.push_back((number as u64, now, size));
            }
            let (mut our_drops, mut their_drops) = (Vec::new(), Vec::new());
            let sent = codel.dequeue(
                Duration::from_nanos(now),
                || {
                    let (number, at, _) = ours.pop_front()?;
                    let behind = ours.iter().map(|(_, _, size): &(u64, u64, usize)| size).sum();
                    Some((number, Duration::from_nanos(now - at), behind))
                },
                |number| {
                    our_drops.push(number);
                    None
                },
            );
            prop_assert_eq!(sent, published.deque(now, &mut theirs, &mut their_drops));
            prop_assert_eq!(our_drops, their_drops);
        }
    }
}

/// Conditions with everything in them, as a function of what is done.
fn link_first(does: &[(u64, Does)]) -> Conditions {
    let all = does
        .iter()
        .find_map(|(_, what)| if let Does::Set(conditions) = what { Some(conditions.clone()) } else { None });
    all.unwrap_or(Conditions { loss: 0.1, duplicate: 0.1, ..Conditions::default() })
}
