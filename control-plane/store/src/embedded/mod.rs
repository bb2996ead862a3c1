//! The store in one file (redb), for a control plane of one server.
//!
//! Every change is a row `(revision, place)` in `versions`; `live` points at the present version of each key.
//! A version also points at the one before it, which gives watches their previous value, reads of the past
//! what a key was, and compaction the rows to remove. Writes go through one thread with group commit; reads
//! are snapshots and never wait for it; a watch is a cursor over a shared ring of recent changes, and over
//! the file when it is further behind, so a slow reader costs no memory and blocks nobody.

mod read;
mod schema;
mod writer;

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::BoxStream;
use parking_lot::{Mutex, RwLock};
use redb::{Database, ReadableDatabase, ReadableTable};
use tokio::sync::{oneshot, watch as channel};

use crate::cursor::{self, Source};
use crate::ring::Ring;
use crate::{GetResponse, RangeRequest, RangeResponse, Result, Revision, Store, StoreError, Txn, TxnResponse, WatchBatch};
use schema::Snapshot;
use writer::{Command, Writer};

/// Bytes of history that a watch reads from the file at a time.
const HISTORY_STEP: usize = 1 << 20;

/// How to keep the file.
#[derive(Debug, Clone)]
pub struct Options {
    /// History older than this is compacted away. Default 5 minutes.
    pub retain_for: Duration,
    /// At most about so many revisions of history, however young. Default 200 000.
    pub retain_revisions: u64,
    /// Largest value in bytes. Default 4 MiB: above the 3 MiB a request body may have.
    pub max_value: usize,
    /// Page cache in bytes. Default 8 MiB; the kernel caches the file as well.
    pub cache: usize,
    /// Verify every checksum when opening a file of at most this many bytes; larger ones are verified only
    /// after a crash. Default 64 MiB (a fraction of a second).
    pub verify_up_to: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { retain_for: Duration::from_secs(300), retain_revisions: 200_000, max_value: 4 << 20, cache: 8 << 20, verify_up_to: 64 << 20 }
    }
}

/// A store in a file. Dropping it stops the writer and closes the file; open watches end.
pub struct Embedded {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    path: PathBuf,
    /// `None` once closed.
    db: RwLock<Option<Arc<Database>>>,
    ring: Arc<Ring>,
    revision: channel::Receiver<Revision>,
}

/// Opens the store in `path`, making it (mode 0600) if it is not there.
///
/// # Errors
/// [`StoreError::InUse`] if another process has it open, [`StoreError::Corrupted`] if the file is damaged or
/// is not a store, [`StoreError::Unavailable`] if it cannot be read or written.
pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Embedded> {
    let path = path.as_ref().to_path_buf();
    let db = open_database(&path, &options).map_err(|e| schema::named(e, &path))?;
    let prepared = prepare(&db).map_err(|e| schema::named(e, &path))?;

    let (commands, receiver) = std::sync::mpsc::channel();
    let (sender, revision) = channel::channel(prepared.revision);
    let db = Arc::new(db);
    let ring = Arc::new(Ring::new(prepared.revision));
    let writer = Writer {
        db: db.clone(),
        commands: receiver,
        ring: ring.clone(),
        revision: sender,
        samples: VecDeque::from([(Instant::now(), prepared.revision)]),
        options,
        compacted: 0,
        next_expiry: prepared.next_expiry,
        scrubbing: true,
    };
    let thread = std::thread::Builder::new()
        .name("store-writer".into())
        .spawn(move || writer.run())
        .map_err(|e| StoreError::Unavailable(format!("cannot start the store's writer thread: {e}")))?;
    Ok(Embedded {
        shared: Arc::new(Shared { path, db: RwLock::new(Some(db)), ring, revision }),
        commands,
        writer: Mutex::new(Some(thread)),
    })
}

fn open_database(path: &Path, options: &Options) -> Result<Database> {
    let unavailable = |e: std::io::Error| StoreError::Unavailable(format!("cannot open store file {}: {e}", path.display()));
    let corrupted = |reason: String| StoreError::Corrupted { path: path.display().to_string(), reason };
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(unavailable)?;
    let metadata = file.metadata().map_err(unavailable)?;
    if !metadata.is_file() {
        return Err(StoreError::Unavailable(format!("store file {} is not a regular file", path.display())));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(unavailable)?;
    }
    if metadata.len() == 0
        && let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty())
    {
        // The name must survive a crash as the contents do.
        std::fs::File::open(folder).and_then(|f| f.sync_all()).map_err(unavailable)?;
    }
    let verify = metadata.len() <= options.verify_up_to;
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let backend = redb::backends::FileBackend::new(file)?;
        Database::builder()
            .set_cache_size(options.cache)
            .set_check_integrity_on_open(verify && metadata.len() > 0)
            .create_with_backend(backend)
    }));
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen | redb::DatabaseError::LockProtocolMismatch)) => {
            Err(StoreError::InUse { path: path.display().to_string() })
        }
        Ok(Err(redb::DatabaseError::Storage(redb::StorageError::Io(e)))) => match e.kind() {
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => Err(corrupted(e.to_string())),
            _ => Err(unavailable(e)),
        },
        Ok(Err(e)) => Err(corrupted(e.to_string())),
        // redb asserts on some damage instead of returning an error.
        Err(_) => Err(corrupted("its contents contradict themselves".into())),
    }
}

struct Prepared {
    revision: Revision,
    next_expiry: Option<u64>,
}

/// Makes the tables of an empty file; checks that a file with contents is ours.
fn prepare(db: &Database) -> Result<Prepared> {
    use redb::TableHandle;
    let read = db.begin_read().map_err(schema::transaction)?;
    let names: Vec<String> = read.list_tables().map_err(schema::storage)?.map(|t| t.name().to_owned()).collect();
    drop(read);
    if names.is_empty() {
        let write = db.begin_write().map_err(schema::transaction)?;
        {
            let mut counters = write.open_table(schema::META).map_err(schema::table)?;
            counters.insert(schema::META_FORMAT, schema::FORMAT).map_err(schema::storage)?;
            counters.insert(schema::META_REVISION, 1).map_err(schema::storage)?;
            write.open_table(schema::VERSIONS).map_err(schema::table)?;
            write.open_table(schema::LIVE).map_err(schema::table)?;
            write.open_table(schema::EXPIRY).map_err(schema::table)?;
        }
        write.commit().map_err(schema::commit)?;
        return Ok(Prepared { revision: 1, next_expiry: None });
    }
    let damaged = |reason: String| StoreError::Corrupted { path: String::new(), reason };
    if !names.iter().any(|n| n == "meta") {
        return Err(damaged(format!("it is a redb file of another program (tables {})", names.join(", "))));
    }
    let read = db.begin_read().map_err(schema::transaction)?;
    let counters = read.open_table(schema::META).map_err(schema::table)?;
    let format = schema::meta(&counters, schema::META_FORMAT)?;
    if format != schema::FORMAT {
        return Err(damaged(format!("its format is {format}, this program reads {}", schema::FORMAT)));
    }
    let snapshot = Snapshot::open(&read)?;
    let expiry = read.open_table(schema::EXPIRY).map_err(schema::table)?;
    let next_expiry = expiry.first().map_err(schema::storage)?.map(|(k, _)| k.value().0);
    Ok(Prepared { revision: snapshot.revision, next_expiry })
}

impl Shared {
    fn db(&self) -> Result<Arc<Database>> {
        self.db.read().clone().ok_or_else(StoreError::closed)
    }

    fn read<T>(&self, f: impl FnOnce(&Snapshot) -> Result<T>) -> Result<T> {
        let db = self.db()?;
        let txn = db.begin_read().map_err(schema::transaction)?;
        Snapshot::open(&txn).and_then(|snapshot| f(&snapshot)).map_err(|e| schema::named(e, &self.path))
    }
}

impl Source for Shared {
    fn ring(&self) -> &Ring {
        &self.ring
    }

    fn revision(&self) -> channel::Receiver<Revision> {
        self.revision.clone()
    }

    async fn history(&self, prefix: &str, from: Revision, to: Revision) -> Result<(Vec<WatchBatch>, Revision)> {
        let (db, prefix, path) = (self.db()?, prefix.to_owned(), self.path.clone());
        run_blocking(move || {
            let txn = db.begin_read().map_err(schema::transaction)?;
            Snapshot::open(&txn)
                .and_then(|snapshot| read::history(&snapshot, &prefix, from, to, HISTORY_STEP))
                .map_err(|e| schema::named(e, &path))
        })
        .await
    }
}

impl Embedded {
    /// Stops the writer after what is queued and closes the file. Calls and watches fail afterwards.
    pub fn close(&self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.writer.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
        self.shared.db.write().take();
    }

    async fn reading<T: Send + 'static>(&self, f: impl FnOnce(&Snapshot) -> Result<T> + Send + 'static) -> Result<T> {
        let shared = self.shared.clone();
        run_blocking(move || shared.read(f)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| StoreError::closed())?;
        answer.await.map_err(|_| StoreError::closed())?
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

async fn run_blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(f).await.map_err(|e| StoreError::Backend(format!("read failed: {e}")))?
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<GetResponse> {
        // A lookup takes microseconds; handing it to another thread would cost more.
        self.shared.read(|snapshot| read::get(snapshot, key))
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse> {
        self.reading(move |snapshot| read::range(snapshot, &request)).await
    }

    async fn count(&self, prefix: &str) -> Result<u64> {
        let prefix = prefix.to_owned();
        self.reading(move |snapshot| read::count(snapshot, &prefix)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        self.ask(|reply| Command::Txn { txn, reply }).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<BoxStream<'static, Result<WatchBatch>>> {
        let compacted = self.shared.read(|snapshot| Ok(snapshot.compacted))?;
        if from <= compacted {
            return Err(StoreError::Compacted { requested: from, oldest: compacted + 1 });
        }
        Ok(cursor::stream(self.shared.clone(), prefix.to_owned(), from))
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.ask(|reply| Command::Compact { revision, reply }).await
    }

    async fn revision(&self) -> Result<Revision> {
        self.shared.read(|snapshot| Ok(snapshot.revision))
    }

    async fn size(&self) -> Result<u64> {
        std::fs::metadata(&self.shared.path).map(|m| m.len()).map_err(|e| StoreError::Unavailable(e.to_string()))
    }
}
