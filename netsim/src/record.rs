//! What happened to every packet, a line each, for pictures and for comparing runs.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::command::Way;
use crate::link::{Event, What};

/// Names the columns.
pub const HEADER: &str = "link,way,number,size,came,at,what";

/// A line of a record: link, direction, the packet's number and size, when it came and when this happened (seconds), and
/// `delivered`, `copy`, `marked` or why it was dropped.
pub fn line<T>(link: &str, way: Way, event: &Event<T>) -> String {
    let what = match &event.what {
        What::Delivered { copy: true, .. } => "copy",
        What::Delivered { marked: true, .. } => "marked",
        What::Delivered { .. } => "delivered",
        What::Dropped(why) => why.name(),
    };
    let seconds = |at: Duration| format!("{}.{:09}", at.as_secs(), at.subsec_nanos());
    let (came, at) = (seconds(event.came_at), seconds(event.at));
    format!("{link},{},{},{},{came},{at},{what}", way.name(), event.number, event.size)
}

/// A file of such lines. Clones write to the same.
#[derive(Clone)]
pub struct Record(Arc<Mutex<Box<dyn Write + Send>>>);

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Record")
    }
}

impl Record {
    /// Begins a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        writeln!(file, "{HEADER}")?;
        Ok(Self(Arc::new(Mutex::new(Box::new(file)))))
    }

    /// One that is kept, and what reads it.
    pub fn in_memory() -> (Self, impl Fn() -> String) {
        let kept = Kept::default();
        let reader = kept.clone();
        let read = move || {
            let bytes = reader.0.lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        (Self(Arc::new(Mutex::new(Box::new(kept)))), read)
    }

    /// Adds a line. A disk that is full costs the record, not the run.
    pub fn add<T>(&self, link: &str, way: Way, event: &Event<T>) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(file, "{}", line(link, way, event));
    }

    /// Writes what is buffered.
    pub fn flush(&self) {
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).flush();
    }
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
