//! What a snapshot of a folder of 100 MB costs (2,000 files of 50 KB that lz4 shortens by half): the first look, which reads
//! all of it, the look while the agent stands still, one after a single file has changed, and making the folder again.
//! `cargo bench --bench snapshot`. Nothing is sent: what that costs is the network's and the store's.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ado::env::Env;
use ado::worker::snapshot::{Limits, Restore, Root, Taken, Taker, WORKSPACE};
use ado_proto::snapshot::Manifest;

const FILES: u64 = 2_000;
const BYTES: usize = 50_000;
const ROUNDS: usize = 5;

fn main() {
    let env = Env::system();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (from, staging) = (dir.path().join("from"), dir.path().join("staging"));
    for file in 0..FILES {
        let folder = from.join(format!("{}", file % 40));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(format!("{file}")), contents(file)).expect("a file");
    }
    // A change is told from the next one only when it is a while old.
    wait(Duration::from_millis(500));
    let mut rows: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for round in 0..ROUNDS as u64 {
        let mut taker = Taker::new(vec![Root::new(WORKSPACE, &from)], Limits::default(), staging.clone());
        let look = |taker: &mut Taker| timed(&env, || take(taker, &env));
        let (first, took) = look(&mut taker);
        rows.entry("1 first look").or_default().push(took);
        let (cut, took) = look(&mut taker);
        rows.entry("2 look while it stands still").or_default().push(took);
        assert_eq!(first.id, cut.id);
        let packs: BTreeMap<_, _> =
            cut.new.iter().map(|id| (*id, Taker::pack(&staging, id).expect("it was taken"))).collect();
        taker.recorded(cut.id);
        fs::write(from.join("7/7"), contents(FILES + round)).expect("a file");
        wait(Duration::from_millis(300));
        let (changed, took) = look(&mut taker);
        rows.entry("3 look after a change").or_default().push(took);
        let sent: usize = changed.new.iter().map(|id| Taker::pack(&staging, id).expect("it was taken").len()).sum();
        assert!(sent < 2 * BYTES, "{sent} bytes for one file");
        let to = dir.path().join(format!("to-{round}"));
        fs::create_dir(&to).expect("a folder");
        let ((), took) = timed(&env, || restore(&cut, &packs, &to));
        rows.entry("4 made again").or_default().push(took);
        fs::remove_dir_all(to).expect("a folder");
        if round == 0 {
            let bytes: usize = packs.values().map(|pack| pack.len()).sum();
            println!("{} files, {} bytes; {} packs of {bytes} bytes", cut.files, cut.bytes, packs.len());
        }
    }
    for (name, mut took) in rows {
        took.sort();
        println!("{name}: least {:?}, median {:?}, most {:?}", took[0], took[took.len() / 2], took[took.len() - 1]);
    }
}

fn take(taker: &mut Taker, env: &Env) -> Taken {
    taker.take(env.now().0, &AtomicBool::new(false)).expect("a sound folder")
}

fn restore(taken: &Taken, packs: &BTreeMap<ado_proto::BlobId, bytes::Bytes>, to: &Path) {
    let manifest = Manifest::decode(&taken.manifest).expect("it was just made");
    let places = BTreeMap::from([(WORKSPACE.to_owned(), to.to_owned())]);
    let restore = Restore::begin(manifest, &places).expect("an empty folder");
    for (id, pack) in packs {
        restore.fill(*id, pack).expect("it is sound");
    }
    restore.finish().expect("it is whole");
}

fn timed<T>(env: &Env, work: impl FnOnce() -> T) -> (T, Duration) {
    let begun = env.now();
    let done = work();
    (done, env.now().since(begun))
}

fn wait(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "file systems count time in ticks")]
    std::thread::sleep(time);
}

/// Half of it noise.
fn contents(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..BYTES).map(|at| if at % 64 < 32 { next() } else { b' ' }).collect()
}
