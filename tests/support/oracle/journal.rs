//! What an agent writes down on its disk before it does it, so that it can be judged from outside.

use ado_proto::record::Stream;

/// The agent, for `/bin/sh`. It writes `LINES` lines to stdout, from its checkpoint on; every `KEEP`th is a checkpoint, every
/// seventh has a companion on stderr, and line `BURST` is followed by many at once. `WAIT` is between lines, seconds.
/// All its epochs append to one journal, `NOTES`/task: the order of the notes is the order of the deeds.
pub const AGENT: &str = r#"
notes=$NOTES/$ADO_TASK_ID; e=$ADO_EPOCH; n=${ADO_CHECKPOINT:-0}
note() { echo "$e $*" >>"$notes" || exit 99; }
note begin "$n" $$
while test "$n" -lt "$LINES"; do
    n=$((n + 1))
    note out "$n"; echo "$ADO_TASK_ID $e $n $(((n * 7919 + e * 104729) % 65521))"
    if test $((n % 7)) = 0; then note err "$n"; echo "$ADO_TASK_ID $e err $n" >&2; fi
    if test "$n" = "$BURST"; then note burst "$n"; seq $((n * 100000)) $((n * 100000 + 3000)); fi
    if test $((n % KEEP)) = 0; then
        note keep "$n"
        if "$ADO" task checkpoint --quiet --data "$n" 2>/dev/null; then note kept "$n"; fi
    fi
    sleep "$WAIT"
done
note end "$n"
"#;

/// One note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Begin,
    Out,
    Err,
    Burst,
    Keep,
    Kept,
    End,
}

/// All notes of the agents of one task, in order.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    task: String,
    notes: Vec<(u64, Deed, u64)>,
}

impl Journal {
    /// Reads a journal. A last line that is cut off is no note: whoever wrote it died over it.
    pub fn read(task: &str, text: &str) -> Self {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let note = |line: &str| {
            let mut words = line.split(' ');
            let epoch = words.next()?.parse().ok()?;
            let deed = match words.next()? {
                "begin" => Deed::Begin,
                "out" => Deed::Out,
                "err" => Deed::Err,
                "burst" => Deed::Burst,
                "keep" => Deed::Keep,
                "kept" => Deed::Kept,
                "end" => Deed::End,
                _ => return None,
            };
            Some((epoch, deed, words.next()?.parse().ok()?))
        };
        let notes = whole.lines().map(|line| note(line).unwrap_or_else(|| panic!("no note: {line}"))).collect();
        Self { task: task.into(), notes }
    }

    fn of(&self, epoch: u64) -> impl DoubleEndedIterator<Item = (Deed, u64)> {
        self.notes.iter().filter(move |note| note.0 == epoch).map(|note| (note.1, note.2))
    }

    fn bytes(&self, epoch: u64, deed: Deed, n: u64, stream: Stream) -> Vec<u8> {
        let task = &self.task;
        let text = match (deed, stream) {
            (Deed::Out, Stream::Stdout) => format!("{task} {epoch} {n} {}\n", (n * 7919 + epoch * 104_729) % 65_521),
            (Deed::Err, Stream::Stderr) => format!("{task} {epoch} err {n}\n"),
            (Deed::Burst, Stream::Stdout) => {
                (n * 100_000..=n * 100_000 + 3000).map(|number| format!("{number}\n")).collect()
            }
            _ => String::new(),
        };
        text.into_bytes()
    }

    /// What an epoch's agent wrote for sure, and what it may have written: its last deed may not have been done.
    pub fn wrote(&self, epoch: u64, stream: Stream) -> (Vec<u8>, Vec<u8>) {
        let parts: Vec<_> = self.of(epoch).map(|(deed, n)| self.bytes(epoch, deed, n, stream)).collect();
        let sure = parts.split_last().map_or_else(Vec::new, |(_, before)| before.concat());
        (sure, parts.concat())
    }

    /// What an epoch's agent wrote to stdout before it made this checkpoint; all of it if there is none.
    pub fn between(&self, epoch: u64, until: Option<u64>) -> Vec<u8> {
        let end = until.map(|number| (Deed::Keep, number));
        let counted = self.of(epoch).take_while(|note| Some(*note) != end);
        counted.flat_map(|(deed, n)| self.bytes(epoch, deed, n, Stream::Stdout)).collect()
    }

    /// The number an epoch's agent began after; `None`: it never ran.
    pub fn began(&self, epoch: u64) -> Option<u64> {
        self.of(epoch).find(|note| note.0 == Deed::Begin).map(|note| note.1)
    }

    /// Checkpoints whose maker was told that they are kept.
    pub fn acknowledged(&self) -> Vec<(u64, u64)> {
        self.notes.iter().filter(|note| note.1 == Deed::Kept).map(|note| (note.0, note.2)).collect()
    }

    /// Agents of epochs that the log does not know, and second agents of one epoch.
    pub fn strangers(&self, known: &[u64]) -> Vec<String> {
        let begun: Vec<_> = self.notes.iter().filter(|note| note.1 == Deed::Begin).map(|note| note.0).collect();
        let unknown = self.notes.iter().map(|note| note.0).filter(|epoch| !known.contains(epoch));
        let mut strangers: Vec<_> =
            unknown.map(|epoch| format!("an agent ran under the unknown epoch {epoch}")).collect();
        strangers.dedup();
        let twice = begun.iter().enumerate().filter(|(place, epoch)| begun[..*place].contains(epoch));
        strangers.extend(twice.map(|(_, epoch)| format!("epoch {epoch} was begun twice")));
        strangers
    }

    /// Where an agent did something after an agent of a later epoch had begun.
    pub fn meetings(&self) -> Vec<String> {
        let mut newest = 0;
        let mut met = Vec::new();
        for (epoch, deed, n) in &self.notes {
            if *epoch < newest {
                met.push(format!("two agents at once: epoch {epoch} did {deed:?} {n} after epoch {newest} had begun"));
            }
            newest = newest.max(*epoch);
        }
        met.truncate(3);
        met
    }
}
