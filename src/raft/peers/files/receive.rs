//! The side that receives files. What blocks runs on threads that may; it keeps the transfer's place until it is over, so that a new attempt never meets an old
//! one's last write.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::Streaming;
use xxhash_rust::xxh3::Xxh3;

use super::{CHUNK_BYTES_MAX, FILES_MAX, TRANSFERS_MAX, check_name};
use crate::cluster::NodeName;
use crate::proto::raft::{
    Chunk, Complete, Done, FileInfo, FileList, SendFilesRequest, Wanted, send_files_request,
    send_files_response,
};
use crate::raft::peers::refusal::{Reason, Refusal};
use crate::raft::transport::Receiver;
use crate::util::fs::{File, FileSystem};

/// Wait for the next step of the sender.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Wait for the end of an earlier attempt with the same files.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes that are written before they are synced: the last sync of a large file would take too long.
const UNSYNCED_BYTES_MAX: u64 = 32 << 20;

/// Bytes of a file that are read at a time.
const READ_BYTES: usize = 1 << 20;

/// Transfers that come in.
#[derive(Debug)]
pub(in crate::raft::peers) struct Receiving {
    fs: Arc<dyn FileSystem>,
    permits: Arc<Semaphore>,
    running: Mutex<HashSet<Key>>,
    ended: Notify,
}

type Key = (NodeName, Bytes);

/// The place of a transfer; free again when dropped.
struct Place {
    receiving: Arc<Receiving>,
    key: Key,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.receiving.running.lock().remove(&self.key);
        self.receiving.ended.notify_waiters();
    }
}

impl Receiving {
    pub(in crate::raft::peers) fn new(fs: Arc<dyn FileSystem>) -> Arc<Self> {
        Arc::new(Self {
            fs,
            permits: Arc::new(Semaphore::new(TRANSFERS_MAX)),
            running: Mutex::default(),
            ended: Notify::new(),
        })
    }

    async fn place(self: &Arc<Self>, key: Key) -> Result<Arc<Place>, Refusal> {
        let busy = |message: String| Refusal::new(Reason::Busy, message);
        let turn = async {
            loop {
                let ended = self.ended.notified();
                if self.running.lock().insert(key.clone()) {
                    return;
                }
                ended.await;
            }
        };
        let late = |_| busy("the same files are still being received".to_owned());
        timeout(TURN_TIMEOUT, turn).await.map_err(late)?;
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            self.running.lock().remove(&key);
            return Err(busy(format!("{TRANSFERS_MAX} transfers of files are going on")));
        };
        Ok(Arc::new(Place { receiving: Arc::clone(self), key, _permit: permit }))
    }
}

/// One transfer, step by step.
pub(in crate::raft::peers) struct Transfer {
    receiving: Arc<Receiving>,
    from: NodeName,
    receiver: Arc<dyn Receiver>,
    steps: Streaming<SendFilesRequest>,
    phase: Phase,
}

enum Phase {
    /// The list comes next.
    Begin,
    /// The file at this position of the list comes next.
    Next(Staging, usize),
    /// Chunks of a file come next.
    Chunks(Staging, Staged),
    /// All files are there.
    Install(Staging),
    End,
}

/// The files of a transfer, and where they go.
struct Staging {
    place: Arc<Place>,
    header: Bytes,
    directory: PathBuf,
    files: Arc<Vec<FileInfo>>,
}

/// A file that is under way.
struct Staged {
    /// Its place in the list.
    position: usize,
    file: Arc<dyn File>,
    /// Over all bytes so far.
    hasher: Box<Xxh3>,
    /// Number of bytes so far.
    offset: u64,
    unsynced: u64,
}

impl Transfer {
    pub(in crate::raft::peers) fn new(
        receiving: Arc<Receiving>,
        from: NodeName,
        receiver: Arc<dyn Receiver>,
        steps: Streaming<SendFilesRequest>,
    ) -> Self {
        Self { receiving, from, receiver, steps, phase: Phase::Begin }
    }

    /// What this side says next; `None` at the end.
    pub(in crate::raft::peers) async fn step(
        &mut self,
    ) -> Result<Option<send_files_response::Step>, Refusal> {
        use send_files_response::Step;
        loop {
            match std::mem::replace(&mut self.phase, Phase::End) {
                Phase::Begin => {
                    let send_files_request::Step::List(list) = self.next().await? else {
                        return Err(Refusal::malformed("a transfer of files"));
                    };
                    if let Some(reply) = self.begin(list).await? {
                        return Ok(Some(Step::Done(Done { reply })));
                    }
                }
                Phase::Next(staging, position) if position == staging.files.len() => {
                    staging.blocking(sync_directory).await?;
                    self.phase = Phase::Install(staging);
                    return Ok(Some(Step::Complete(Complete {})));
                }
                Phase::Next(staging, position) => {
                    let stage = move |fs: &dyn FileSystem, s: &Work| stage(fs, s, position);
                    let Some(staged) = staging.blocking(stage).await? else {
                        self.phase = Phase::Next(staging, position + 1);
                        continue;
                    };
                    let file = u32::try_from(position).expect("there are fewer files");
                    let wanted = Wanted { file, offset: staged.offset };
                    self.phase = Phase::Chunks(staging, staged);
                    return Ok(Some(Step::Wanted(wanted)));
                }
                Phase::Chunks(staging, mut staged) => {
                    let position = staged.position;
                    while staged.offset < staging.files[position].size {
                        let send_files_request::Step::Chunk(chunk) = self.next().await? else {
                            return Err(Refusal::malformed("a transfer of files"));
                        };
                        check_chunk(&staging.files[position], staged.offset, &chunk)?;
                        let write = move |_: &dyn FileSystem, s: &Work| write(s, staged, &chunk);
                        staged = staging.blocking(write).await?;
                    }
                    staging.blocking(move |_, work| finish(work, staged)).await?;
                    self.phase = Phase::Next(staging, position + 1);
                }
                Phase::Install(Staging { place, header, directory, .. }) => {
                    let reply = self.receiver.received_files(&self.from, header, directory).await;
                    drop(place);
                    return Ok(Some(Step::Done(Done { reply })));
                }
                Phase::End => return Ok(None),
            }
        }
    }

    /// The sender's next step.
    async fn next(&mut self) -> Result<send_files_request::Step, Refusal> {
        let late = |_| {
            Refusal::new(Reason::Busy, format!("nothing came of the files for {STEP_TIMEOUT:?}"))
        };
        let step = timeout(STEP_TIMEOUT, self.steps.message()).await.map_err(late)?;
        let step = step.ok().flatten().and_then(|request| request.step);
        step.ok_or_else(|| Refusal::malformed("a transfer of files"))
    }

    /// Takes the list; the reply, if the receiver wants none of it.
    async fn begin(&mut self, list: FileList) -> Result<Option<Bytes>, Refusal> {
        check_list(&list.files)?;
        let place = self.receiving.place((self.from.clone(), list.header.clone())).await?;
        let directory = match self.receiver.staging(&self.from, &list.header) {
            Ok(directory) => directory,
            Err(reply) => return Ok(Some(reply)),
        };
        let files = Arc::new(list.files);
        let staging = Staging { place, header: list.header, directory, files };
        staging.blocking(clear).await?;
        self.phase = Phase::Next(staging, 0);
        Ok(None)
    }
}

/// What a blocking step works on.
struct Work {
    directory: PathBuf,
    files: Arc<Vec<FileInfo>>,
}

impl Work {
    fn path(&self, position: usize) -> PathBuf {
        self.directory.join(&self.files[position].name)
    }
}

impl Staging {
    /// Runs `work` on a thread that may block. When nobody waits for it any more it ends all the same, before the place is free.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn FileSystem, &Work) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let place = Arc::clone(&self.place);
        let on = Work { directory: self.directory.clone(), files: Arc::clone(&self.files) };
        tokio::task::spawn_blocking(move || work(&*place.receiving.fs, &on))
            .await
            .unwrap_or_else(|error| Err(Refusal::new(Reason::Disk, error)))
    }
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Refusal + 'a {
    move |error| Refusal::new(Reason::Disk, format!("cannot {what} {}: {error}", path.display()))
}

fn check_list(files: &[FileInfo]) -> Result<(), Refusal> {
    let bad = |message: String| Err(Refusal::new(Reason::BadFile, message));
    if files.len() > FILES_MAX {
        return bad(format!("{} files are too many; at most {FILES_MAX} are taken", files.len()));
    }
    let mut names = HashSet::new();
    for file in files {
        check_name(&file.name)?;
        if !names.insert(file.name.as_str()) {
            return bad(format!("file {} is in the list twice", file.name));
        }
    }
    Ok(())
}

/// Makes the directory, removes what does not belong into it, and looks whether the rest has room.
fn clear(fs: &dyn FileSystem, work: &Work) -> Result<(), Refusal> {
    let directory = &work.directory;
    fs.create_dir_all(directory).map_err(failed("create", directory))?;
    let names: HashSet<&str> = work.files.iter().map(|file| file.name.as_str()).collect();
    let found = fs.list(directory).map_err(failed("list", directory))?;
    for name in found.iter().filter(|name| !names.contains(name.as_str())) {
        let path = directory.join(name);
        fs.remove(&path).map_err(failed("remove", &path))?;
    }
    let mut missing = 0u64;
    for (position, file) in work.files.iter().enumerate() {
        let path = work.path(position);
        let there = fs.exists(&path).map_err(failed("find", &path))?;
        let size = if there { fs.open(&path).and_then(|file| file.size()) } else { Ok(0) };
        let size = size.map_err(failed("open", &path))?;
        missing = missing.saturating_add(file.size.saturating_sub(size));
    }
    let space = fs.space(directory).map_err(failed("measure", directory))?;
    if missing > space.available {
        let (directory, available) = (directory.display(), space.available);
        let message = format!("{missing} bytes are to come, {directory} has room for {available}");
        return Err(Refusal::new(Reason::Disk, message));
    }
    Ok(())
}

/// The file at `position`, as far as it is there; `None` when it is there, right and durable.
fn stage(fs: &dyn FileSystem, work: &Work, position: usize) -> Result<Option<Staged>, Refusal> {
    let (path, info) = (work.path(position), &work.files[position]);
    let there = fs.exists(&path).map_err(failed("find", &path))?;
    let file = if there { fs.open_write(&path) } else { fs.create(&path) };
    let file = file.map_err(failed("open", &path))?;
    let mut staged = Staged { position, file, hasher: Box::default(), offset: 0, unsynced: 0 };
    let size = staged.file.size().map_err(failed("open", &path))?;
    if size <= info.size {
        staged.hash_to(size).map_err(failed("read", &path))?;
    }
    if size == info.size && staged.hasher.digest() == info.checksum {
        staged.file.sync_data().map_err(failed("sync", &path))?;
        return Ok(None);
    }
    if size >= info.size {
        staged.file.truncate(0).map_err(failed("truncate", &path))?;
        (staged.hasher, staged.offset) = (Box::default(), 0);
    }
    if info.size == 0 {
        return Err(wrong_checksum(info));
    }
    // What an earlier attempt wrote may be in memory only.
    staged.unsynced = staged.offset;
    Ok(Some(staged))
}

fn check_chunk(info: &FileInfo, offset: u64, chunk: &Chunk) -> Result<(), Refusal> {
    let bad = |what: &str| {
        let message = format!("file {} at offset {offset}: {what}", info.name);
        Err(Refusal::new(Reason::BadFile, message))
    };
    let bytes = chunk.data.len();
    if chunk.offset != offset {
        return bad("a chunk is for another offset");
    }
    if bytes == 0 || bytes > CHUNK_BYTES_MAX || bytes as u64 > info.size - offset {
        return bad("a chunk has a size that is not allowed");
    }
    if crc32c::crc32c(&chunk.data) != chunk.checksum {
        return bad("a chunk was damaged on its way");
    }
    Ok(())
}

fn write(work: &Work, mut staged: Staged, chunk: &Chunk) -> Result<Staged, Refusal> {
    let path = work.path(staged.position);
    staged.file.write_at(&chunk.data, staged.offset).map_err(failed("write", &path))?;
    staged.hasher.update(&chunk.data);
    staged.offset += chunk.data.len() as u64;
    staged.unsynced += chunk.data.len() as u64;
    if staged.unsynced >= UNSYNCED_BYTES_MAX {
        staged.file.sync_data().map_err(failed("sync", &path))?;
        staged.unsynced = 0;
    }
    Ok(staged)
}

fn finish(work: &Work, staged: Staged) -> Result<(), Refusal> {
    let (path, info) = (work.path(staged.position), &work.files[staged.position]);
    if staged.hasher.digest() != info.checksum {
        staged.file.truncate(0).map_err(failed("truncate", &path))?;
        return Err(wrong_checksum(info));
    }
    staged.file.sync_data().map_err(failed("sync", &path))
}

fn wrong_checksum(info: &FileInfo) -> Refusal {
    let message = format!(
        "file {} has not the checksum that was announced; the next attempt sends it whole",
        info.name
    );
    Refusal::new(Reason::BadFile, message)
}

fn sync_directory(fs: &dyn FileSystem, work: &Work) -> Result<(), Refusal> {
    fs.sync_dir(&work.directory).map_err(failed("sync", &work.directory))
}

impl Staged {
    /// Takes what is there, up to `size`, into the checksum.
    fn hash_to(&mut self, size: u64) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        while self.offset < size {
            let count =
                usize::try_from(size - self.offset).map_or(READ_BYTES, |n| n.min(READ_BYTES));
            self.file.read_exact_at(&mut buffer[..count], self.offset)?;
            self.hasher.update(&buffer[..count]);
            self.offset += count as u64;
        }
        Ok(())
    }
}
