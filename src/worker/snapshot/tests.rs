use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use proptest::prelude::*;

use super::*;

const WORK: &str = "workspace";

/// A folder, a staging folder, and the blobs that were sent.
struct Rig {
    dir: tempfile::TempDir,
    blobs: BTreeMap<BlobId, Bytes>,
    taker: Taker,
}

impl Rig {
    fn new() -> Self {
        Self::within(Limits::default())
    }

    fn within(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("from")).unwrap();
        let taker = Taker::new(vec![Root::new(WORK, dir.path().join("from"))], limits, dir.path().join("staging"));
        Self { dir, blobs: BTreeMap::new(), taker }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("from").join(name)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    /// Late enough for everything to have settled.
    fn look(&mut self) -> Result<Taken, Error> {
        self.taker.take(i64::MAX, &AtomicBool::new(false))
    }

    /// Takes a snapshot, sends its blobs, records it: packs that were new.
    fn take(&mut self) -> (Taken, usize) {
        let taken = self.look().unwrap();
        for id in &taken.new {
            self.blobs.insert(*id, Taker::pack(&self.dir.path().join("staging"), id).unwrap());
        }
        self.blobs.insert(taken.id, taken.manifest.clone());
        self.taker.recorded(taken.id);
        let new = taken.new.len();
        (taken, new)
    }

    /// Makes a new folder of a snapshot.
    fn restore(&self, id: BlobId) -> Result<PathBuf, Error> {
        let to = self.dir.path().join(format!("to-{}", fs::read_dir(self.dir.path()).unwrap().count()));
        fs::create_dir(&to).unwrap();
        restore(&self.blobs, id, &to).map(|()| to)
    }
}

fn restore(blobs: &BTreeMap<BlobId, Bytes>, id: BlobId, to: &Path) -> Result<(), Error> {
    let manifest = Manifest::decode(&blobs[&id])?;
    let restore = Restore::begin(manifest, &BTreeMap::from([(WORK.to_owned(), to.to_owned())]))?;
    for pack in restore.packs() {
        restore.fill(pack, &blobs[&pack])?;
    }
    restore.finish().map(drop)
}

/// All that is in a folder: path, type and mode, time, contents or target.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let (time, contents) = if meta.is_symlink() {
                // A link's own time is not kept.
                ((0, 0), fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
            } else if meta.is_dir() {
                folders.push(path.clone());
                ((meta.mtime(), meta.mtime_nsec()), Vec::new())
            } else {
                ((meta.mtime(), meta.mtime_nsec()), fs::read(&path).unwrap())
            };
            found.insert(path.strip_prefix(root).unwrap().to_owned(), (meta.mode(), time.0, time.1, contents));
        }
    }
    found
}

/// Bytes that lz4 cannot shorten.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn a_folder_is_made_again_as_it_was() {
    let mut rig = Rig::new();
    rig.write("src/main.rs", "fn main() {}");
    rig.write("src/empty", "");
    rig.write("large", noise(1, 9 << 20));
    rig.write("tool", "#!/bin/sh");
    rig.write("read-only/file", "x");
    fs::create_dir_all(rig.path("empty/folder")).unwrap();
    symlink("src/main.rs", rig.path("link")).unwrap();
    symlink("/no/such/file", rig.path("dangling")).unwrap();
    symlink("..", rig.path("src/up")).unwrap();
    fs::write(rig.dir.path().join("from").join(std::ffi::OsStr::from_bytes(b"not\xffutf8")), "odd").unwrap();
    for (name, mode) in [("tool", 0o755), ("src/empty", 0o600), ("read-only/file", 0o400), ("read-only", 0o555)] {
        fs::set_permissions(rig.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let (taken, new) = rig.take();
    assert!(new >= 2, "{new} packs");
    assert_eq!((taken.files, taken.left_out), (6, None));
    let to = rig.restore(taken.id).unwrap();
    assert_eq!(tree(&to), tree(&rig.dir.path().join("from")));
    crate::worker::removal::remove(&to).unwrap();
    crate::worker::removal::remove(&rig.dir.path().join("from")).unwrap();
}

#[test]
fn only_what_has_changed_is_sent() {
    let mut rig = Rig::new();
    let mut large = noise(2, 6 << 20);
    rig.write("large", &large);
    rig.write("other", noise(3, 1 << 20));
    let (first, _) = rig.take();
    let (again, new) = rig.take();
    assert_eq!((again.id, again.unchanged, new), (first.id, true, 0));

    // A byte in its middle: what comes after it is found again, though it has moved.
    large.insert(3 << 20, 7);
    rig.write("large", &large);
    fs::remove_file(rig.path("other")).unwrap();
    let (second, new) = rig.take();
    let sent: usize = second.new.iter().map(|id| rig.blobs[id].len()).sum();
    assert!(new == 1 && sent < 600_000, "{new} packs, {sent} bytes");
    let to = rig.restore(second.id).unwrap();
    assert_eq!(tree(&to), tree(&rig.dir.path().join("from")));
    assert!(!to.join("other").exists(), "what is gone is gone");
    assert_eq!(tree(&rig.restore(first.id).unwrap()).len(), 2, "the former one is as it was");
}

#[test]
fn what_did_not_come_through_is_sent_again() {
    let mut rig = Rig::new();
    rig.write("a", noise(4, 100_000));
    assert_eq!(rig.look().unwrap().new.len(), 1);
    rig.taker.failed();
    assert!(!rig.dir.path().join("staging").exists(), "nothing is left");
    rig.write("b", noise(5, 100_000));
    let (taken, new) = rig.take();
    assert_eq!(new, 1);
    assert_eq!(tree(&rig.restore(taken.id).unwrap()).len(), 2);
}

#[test]
fn another_worker_goes_on_where_the_first_one_was() {
    let mut rig = Rig::new();
    rig.write("large", noise(6, 5 << 20));
    let (first, _) = rig.take();
    let to = rig.restore(first.id).unwrap();
    let staging = rig.dir.path().join("staging-2");
    let mut taker = Taker::new(vec![Root::new(WORK, &to)], Limits::default(), staging);
    taker.begins_with(first.id, Manifest::decode(&first.manifest).unwrap());
    let taken = taker.take(i64::MAX, &AtomicBool::new(false)).unwrap();
    assert_eq!((taken.unchanged, taken.new.len()), (true, 0), "all of it is known");
}

#[test]
fn a_pack_of_which_little_is_needed_is_not_built_upon() {
    let mut rig = Rig::new();
    rig.write("stays", noise(7, 300_000));
    rig.write("goes", noise(8, 3 << 20));
    let (first, _) = rig.take();
    fs::remove_file(rig.path("goes")).unwrap();
    let (second, new) = rig.take();
    assert_eq!((second.new.len(), new), (0, 0), "it is durable where it is");
    // What is kept for the next one is what that needs.
    let (third, new) = rig.take();
    assert_eq!(new, 1);
    let packs = |taken: &Taken| Manifest::decode(&taken.manifest).unwrap().packs;
    assert!(packs(&first)[0].raw > 3 << 20 && packs(&third)[0].raw == 300_000);
    assert_eq!(tree(&rig.restore(third.id).unwrap()), tree(&rig.dir.path().join("from")));
    assert!(rig.take().0.unchanged);
}

#[test]
fn holes_take_no_space() {
    let mut rig = Rig::new();
    let file = File::create(rig.path("sparse")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(&noise(9, 100_000), 1 << 30).unwrap();
    file.write_all_at(b"end", (1 << 40) - 3).unwrap();
    drop(file);
    let meta = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        (meta.len(), meta.blocks())
    };
    if meta(&rig.path("sparse")).1 > 10_000 {
        eprintln!("SKIPPED: no sparse files on this file system");
        return;
    }
    let (taken, _) = rig.take();
    let to = rig.restore(taken.id).unwrap().join("sparse");
    assert_eq!(meta(&to).0, 1 << 40);
    assert!(meta(&to).1 < 10_000, "{} blocks", meta(&to).1);
    let mut part = [0; 5];
    File::open(&to).unwrap().read_exact_at(&mut part, 0).unwrap();
    assert_eq!(&part, b"begin");
    let mut noise_again = vec![0; 100_000];
    File::open(&to).unwrap().read_exact_at(&mut noise_again, 1 << 30).unwrap();
    assert_eq!(noise_again, noise(9, 100_000));
    let mut end = [0; 3];
    File::open(&to).unwrap().read_exact_at(&mut end, (1 << 40) - 3).unwrap();
    assert_eq!(&end, b"end");
}

#[test]
fn what_is_no_file_is_left_out_and_said() {
    let mut rig = Rig::new();
    nix::unistd::mkfifo(&rig.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(rig.path("socket")).unwrap();
    rig.write("file", "x");
    let (taken, _) = rig.take();
    assert_eq!(taken.left_out.as_deref(), Some("`pipe`, `socket`"));
    assert_eq!(tree(&rig.restore(taken.id).unwrap()).len(), 1);
}

#[test]
fn what_is_excluded_is_not_there() {
    let mut rig = Rig::new();
    for name in ["keep/a", "secret/key", "keep/secret", "keep/cache/x"] {
        rig.write(name, name);
    }
    rig.taker.roots[0].exclude = [b"secret".to_vec(), b"keep/cache".to_vec()].into();
    let (taken, _) = rig.take();
    let restored: Vec<_> = tree(&rig.restore(taken.id).unwrap()).into_keys().collect();
    assert_eq!(restored, ["keep", "keep/a", "keep/secret"].map(PathBuf::from));
    let kept: Vec<u8> = rig.blobs.values().flatten().copied().collect();
    assert!(!String::from_utf8_lossy(&kept).contains("secret/key"));
}

#[test]
fn several_roots_are_one_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "to-a", "to-b"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("a/same"), "1").unwrap();
    fs::write(dir.path().join("b/same"), "2").unwrap();
    let roots = vec![Root::new("a", dir.path().join("a")), Root::new("b", dir.path().join("b"))];
    let mut taker = Taker::new(roots, Limits::default(), dir.path().join("staging"));
    let taken = taker.take(i64::MAX, &AtomicBool::new(false)).unwrap();
    let blobs: BTreeMap<_, _> =
        taken.new.iter().map(|id| (*id, Taker::pack(&dir.path().join("staging"), id).unwrap())).collect();
    let manifest = || Manifest::decode(&taken.manifest).unwrap();
    let places = ["a", "b"].map(|name| (name.to_owned(), dir.path().join(format!("to-{name}"))));
    let restore = Restore::begin(manifest(), &places.clone().into()).unwrap();
    restore.packs().into_iter().for_each(|pack| restore.fill(pack, &blobs[&pack]).unwrap());
    restore.finish().unwrap();
    for (name, contents) in [("a", "1"), ("b", "2")] {
        assert_eq!(fs::read_to_string(dir.path().join(format!("to-{name}/same"))).unwrap(), contents);
    }
    let one = BTreeMap::from([places[0].clone()]);
    assert!(matches!(Restore::begin(manifest(), &one), Err(Error::NoPlace(name)) if name == "b"));
}

#[test]
fn limits_are_kept() {
    let limits = Limits { max_bytes: 1 << 20, max_files: 10, ..Limits::default() };
    let mut rig = Rig::within(limits);
    rig.write("a", noise(1, 900_000));
    rig.take();
    rig.write("b", noise(2, 200_000));
    assert!(matches!(rig.look(), Err(Error::TooLarge(_))));
    rig.taker.failed();
    fs::remove_file(rig.path("b")).unwrap();
    rig.write("huge", noise(3, 9 << 20));
    assert!(matches!(rig.look(), Err(Error::TooLarge(_))), "not read to its end");
    rig.taker.failed();
    fs::remove_file(rig.path("huge")).unwrap();
    for name in 0..10 {
        rig.write(&format!("{name}"), "x");
    }
    assert!(matches!(rig.look(), Err(Error::TooMany(10))));
    rig.taker.failed();
    fs::remove_file(rig.path("0")).unwrap();
    let (taken, _) = rig.take();
    assert_eq!(tree(&rig.restore(taken.id).unwrap()).len(), 10, "it goes on as before");
    let deep: PathBuf = std::iter::repeat_n("d", snapshot::MAX_DEPTH + 1).collect();
    fs::remove_file(rig.path("1")).unwrap();
    let mut deeper = Rig::new();
    fs::create_dir_all(deeper.dir.path().join("from").join(deep)).unwrap();
    assert!(matches!(deeper.look(), Err(Error::TooDeep(_))));
    let stop = AtomicBool::new(true);
    assert!(matches!(rig.taker.take(0, &stop), Err(Error::Stopped)));
}

#[test]
fn a_change_within_the_clocks_tick_is_found() {
    let mut rig = Rig::new();
    rig.write("file", "one");
    let meta = fs::metadata(rig.path("file")).unwrap();
    let now = meta.ctime() * 1_000_000 + meta.ctime_nsec() / 1000;
    let first = rig.taker.take(now, &AtomicBool::new(false)).unwrap();
    // The same size, the same inode, and by chance the same times.
    let key = (0, b"file".to_vec());
    let before = rig.taker.cache[&key].stat;
    rig.write("file", "two");
    let file = File::open(rig.path("file")).unwrap();
    assert_eq!(before.size, Stat::of(&file).unwrap().size);
    rig.taker.cache.get_mut(&key).unwrap().stat = Stat::of(&file).unwrap();
    let second = rig.taker.take(now, &AtomicBool::new(false)).unwrap();
    assert_ne!(first.id, second.id);
    // Long after, a file with the same times is taken for the same: this is what makes a second look short.
    rig.taker.cache.get_mut(&key).unwrap().pieces.clear();
    assert_ne!(rig.taker.take(i64::MAX, &AtomicBool::new(false)).unwrap().id, second.id);
}

#[test]
fn damage_is_found_and_nothing_is_made_of_it() {
    let mut rig = Rig::new();
    rig.write("file", noise(1, 50_000));
    let (taken, _) = rig.take();
    let pack = taken.new[0];
    let good = rig.blobs[&pack].clone();
    let mut bad = good.to_vec();
    *bad.last_mut().unwrap() ^= 1;
    rig.blobs.insert(pack, bad.into());
    assert!(matches!(rig.restore(taken.id), Err(Error::Damaged(id)) if id == pack));
    // A pack that is sound, and not what the manifest says.
    let mut manifest = Manifest::decode(&taken.manifest).unwrap();
    manifest.chunks[0].id = BlobId([1; 32]);
    rig.blobs.insert(pack, good);
    rig.blobs.insert(BlobId([9; 32]), manifest.encode().unwrap().into());
    assert!(matches!(rig.restore(BlobId([9; 32])), Err(Error::Damaged(id)) if id == pack));
}

#[test]
fn nothing_is_made_through_what_is_there() {
    let rig = Rig::new();
    let outside = rig.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let meta = Meta { mode: 0o644, seconds: 0, nanos: 0 };
    let file = |path: &str| Entry { path: path.into(), node: Node::File { meta, size: 0, pieces: Vec::new() } };
    let folder = |path: &str| Entry { path: path.into(), node: Node::Folder(Meta { mode: 0o755, ..meta }) };
    let manifest = |entries| {
        let roots = vec![snapshot::Root { name: WORK.into(), entries }];
        Manifest { roots, ..Manifest::default() }
    };
    // The manifest is sound; the folder it is to be made in is not empty.
    for entries in [vec![folder("a"), file("a/x")], vec![file("a")]] {
        let to = tempfile::tempdir_in(rig.dir.path()).unwrap();
        symlink(&outside, to.path().join("a")).unwrap();
        let places = BTreeMap::from([(WORK.to_owned(), to.path().to_owned())]);
        assert!(Restore::begin(manifest(entries), &places).is_err());
    }
    // What has become a link since it was made.
    let to = tempfile::tempdir_in(rig.dir.path()).unwrap();
    let places = BTreeMap::from([(WORK.to_owned(), to.path().to_owned())]);
    let restore = Restore::begin(manifest(vec![folder("a"), file("a/x")]), &places).unwrap();
    fs::rename(to.path().join("a"), to.path().join("b")).unwrap();
    symlink(&outside, to.path().join("a")).unwrap();
    fs::write(outside.join("x"), "").unwrap();
    let mode = || fs::metadata(outside.join("x")).unwrap().mode();
    let before = mode();
    assert!(restore.finish().is_err());
    assert_eq!(before, mode());
    // And the root itself.
    let link = rig.dir.path().join("link");
    symlink(&outside, &link).unwrap();
    let places = BTreeMap::from([(WORK.to_owned(), link)]);
    assert!(Restore::begin(manifest(vec![]), &places).is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

/// Something that happens in a folder.
#[derive(Debug, Clone)]
enum Deed {
    Write(String, u64, usize),
    Folder(String),
    Link(String, String),
    Remove(String),
    Mode(String, u32),
    Append(String, u64, usize),
}

fn deed() -> impl Strategy<Value = Deed> {
    let path = || {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c.d", "a-", " "]), 1..4)
            .prop_map(|parts| parts.join("/"))
    };
    let size = || prop_oneof![Just(0usize), 1..100usize, 10_000..400_000usize];
    prop_oneof![
        4 => (path(), 0..4u64, size()).prop_map(|(path, seed, size)| Deed::Write(path, seed, size)),
        1 => path().prop_map(Deed::Folder),
        1 => (path(), path()).prop_map(|(path, target)| Deed::Link(path, target)),
        2 => path().prop_map(Deed::Remove),
        1 => (path(), 0..8u32).prop_map(|(path, bits)| Deed::Mode(path, 0o600 | bits)),
        2 => (path(), 0..4u64, size()).prop_map(|(path, seed, size)| Deed::Append(path, seed, size)),
    ]
}

/// Does it, if it can be done.
fn act(root: &Path, deed: &Deed) {
    let _ = match deed {
        Deed::Write(path, seed, size) => {
            let path = root.join(path);
            let made = fs::create_dir_all(path.parent().unwrap());
            made.and_then(|()| fs::write(path, noise(*seed, *size)))
        }
        Deed::Folder(path) => fs::create_dir_all(root.join(path)),
        Deed::Link(path, target) => symlink(target, root.join(path)),
        Deed::Remove(path) => fs::remove_file(root.join(path)).or_else(|_| fs::remove_dir_all(root.join(path))),
        Deed::Mode(path, mode) if fs::symlink_metadata(root.join(path)).is_ok_and(|meta| meta.is_file()) => {
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(*mode))
        }
        Deed::Mode(..) => Ok(()),
        Deed::Append(path, seed, size) => File::options()
            .append(true)
            .open(root.join(path))
            .and_then(|mut file| io::Write::write_all(&mut file, &noise(*seed, *size))),
    };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens between snapshots, what is made of each is what was there.
    #[test]
    fn every_snapshot_of_a_life_is_what_was_there(life in prop::collection::vec(prop::collection::vec(deed(), 1..12), 1..5)) {
        let mut rig = Rig::new();
        let mut snapshots = Vec::new();
        for deeds in &life {
            deeds.iter().for_each(|deed| act(&rig.dir.path().join("from"), deed));
            // As it is: nothing has settled.
            let now = crate::env::Env::system().now().0;
            rig.taker.take(now, &AtomicBool::new(false)).unwrap();
            let taken = rig.taker.take(now, &AtomicBool::new(false)).unwrap();
            for id in &taken.new {
                rig.blobs.insert(*id, Taker::pack(&rig.dir.path().join("staging"), id).unwrap());
            }
            rig.blobs.insert(taken.id, taken.manifest.clone());
            rig.taker.recorded(taken.id);
            snapshots.push((taken.id, tree(&rig.dir.path().join("from"))));
        }
        for (id, was) in snapshots {
            let to = rig.restore(id).unwrap();
            prop_assert_eq!(tree(&to), was);
        }
    }
}
