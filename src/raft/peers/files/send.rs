//! The side that sends files.

use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use xxhash_rust::xxh3::Xxh3;

use super::{CHUNK_BYTES, TRANSFERS_MAX};
use crate::cluster::NodeName;
use crate::proto::raft::{
    Chunk, FileInfo, FileList, SendFilesRequest, SendFilesResponse, Wanted, send_files_request,
    send_files_response,
};
use crate::raft::peers::dial::{DialError, dial, within};
use crate::raft::peers::local::Local;
use crate::raft::peers::transport::Sent;
use crate::raft::progress::Progress;
use crate::raft::transport::Failure;
use crate::util::fs::{File, FileSystem};

/// Wait for the receiver's next step while files are sent: it may have to read a file that it has, or sync one.
const STEP_TIMEOUT: Duration = Duration::from_mins(1);

/// Chunks that are read ahead.
const CHUNKS_AHEAD: usize = 2;

/// Transfers that go out.
#[derive(Debug)]
pub(in crate::raft::peers) struct Sending {
    fs: Arc<dyn FileSystem>,
    permits: Semaphore,
    /// Most bytes a second, for each transfer.
    rate: Option<NonZeroU64>,
    sent: Arc<Sent>,
}

/// The files of a transfer, open.
struct Files {
    infos: Vec<FileInfo>,
    files: Vec<Arc<dyn File>>,
}

impl Sending {
    pub(in crate::raft::peers) fn new(
        fs: Arc<dyn FileSystem>,
        rate: Option<NonZeroU64>,
        sent: Arc<Sent>,
    ) -> Arc<Self> {
        Arc::new(Self { fs, permits: Semaphore::new(TRANSFERS_MAX), rate, sent })
    }

    /// See [`Transport::send_files`](crate::raft::transport::Transport::send_files).
    pub(in crate::raft::peers) async fn send(
        self: Arc<Self>,
        local: Arc<Local>,
        node: NodeName,
        header: Bytes,
        directory: PathBuf,
        progress: Arc<Progress>,
    ) -> Result<Bytes, Failure> {
        let unreachable = |why: &str| Failure::Unreachable(format!("node {node}: {why}"));
        let _permit = self.permits.acquire().await.expect("it is never closed");
        let fs = Arc::clone(&self.fs);
        let opened = tokio::task::spawn_blocking(move || {
            Files::open(&*fs, &directory)
                .map_err(|error| format!("cannot read {}: {error}", directory.display()))
        });
        let files = opened.await.unwrap_or_else(|error| Err(error.to_string()));
        let files = files.map_err(|why| unreachable(&why))?;
        progress.begin(files.infos.iter().map(|info| info.size).sum());
        let Some(endpoint) = local.address(&node) else {
            return Err(unreachable("its address is not known"));
        };
        let dialled = dial(&local, Some(&node), &endpoint).await;
        let dialled = dialled.map_err(|error| unreachable(&error.to_string()))?;
        let (steps, outgoing) = mpsc::channel(CHUNKS_AHEAD);
        let list = FileList { header, files: files.infos.clone() };
        let request = dialled.request(ReceiverStream::new(outgoing));
        let mut client = dialled.client;
        let opened = within(async { Ok(client.send_files(request).await?.into_inner()) }).await;
        let mut answers = opened.map_err(|error| unreachable(&error.to_string()))?;
        let (rate, total) = (self.rate, Arc::clone(&self.sent));
        let steps =
            Steps { outgoing: steps, rate, began: Instant::now(), sent: 0, total, progress };
        let done = converse(list, &files, steps, &mut answers).await;
        done.map_err(|error| Failure::Lost(format!("node {node}: {error}")))
    }
}

/// Gives the receiver what it wants, until it is done; its reply.
async fn converse(
    list: FileList,
    files: &Files,
    mut steps: Steps,
    answers: &mut Streaming<SendFilesResponse>,
) -> Result<Bytes, DialError> {
    use send_files_response::Step;
    let broken = |why: &str| DialError::Unreachable(why.to_owned());
    let mut listening = steps.say(send_files_request::Step::List(list)).await;
    let mut complete = false;
    loop {
        // When it takes no more, it has said why.
        let answer = if complete {
            answers.message().await?
        } else {
            let late = |_| broken(&format!("no sign of it for {STEP_TIMEOUT:?}"));
            timeout(STEP_TIMEOUT, answers.message()).await.map_err(late)??
        };
        match answer.and_then(|answer| answer.step) {
            Some(Step::Wanted(wanted)) if listening => {
                listening = steps.send_file(files, &wanted).await?;
            }
            Some(Step::Complete(_)) => complete = true,
            Some(Step::Done(done)) => return Ok(done.reply),
            Some(Step::Wanted(_)) | None => {
                return Err(broken("it ended the transfer before it was done"));
            }
        }
    }
}

/// What goes out.
struct Steps {
    outgoing: mpsc::Sender<SendFilesRequest>,
    rate: Option<NonZeroU64>,
    began: Instant,
    sent: u64,
    /// Of all transfers.
    total: Arc<Sent>,
    /// Of this one.
    progress: Arc<Progress>,
}

impl Steps {
    /// Says `step`; whether somebody listens.
    async fn say(&self, step: send_files_request::Step) -> bool {
        let said = self.outgoing.send(SendFilesRequest { step: Some(step) });
        matches!(timeout(STEP_TIMEOUT, said).await, Ok(Ok(())))
    }

    /// Sends a file from the wanted offset to its end; whether somebody listens.
    async fn send_file(&mut self, files: &Files, wanted: &Wanted) -> Result<bool, DialError> {
        let broken = |why: String| DialError::Unreachable(why);
        let position = usize::try_from(wanted.file).unwrap_or(usize::MAX);
        let (Some(info), Some(file)) = (files.infos.get(position), files.files.get(position))
        else {
            return Err(broken("it wants a file that it was not offered".to_owned()));
        };
        let mut offset = wanted.offset;
        let before: u64 = files.infos[..position].iter().map(|info| info.size).sum();
        self.progress.goes_on_at(before + offset.min(info.size));
        while offset < info.size {
            let file = Arc::clone(file);
            let count =
                usize::try_from(info.size - offset).map_or(CHUNK_BYTES, |n| n.min(CHUNK_BYTES));
            let read = tokio::task::spawn_blocking(move || read_chunk(&*file, offset, count));
            let chunk = match read.await {
                Ok(Ok(chunk)) => chunk,
                Ok(Err(error)) => {
                    return Err(broken(format!("cannot read {}: {error}", info.name)));
                }
                Err(error) => return Err(broken(error.to_string())),
            };
            offset += count as u64;
            self.sent += count as u64;
            self.total.count_files(count);
            self.progress.send(count as u64);
            if !self.say(send_files_request::Step::Chunk(chunk)).await {
                return Ok(false);
            }
            self.pace().await;
        }
        Ok(true)
    }

    /// Waits until what was sent is not more than the rate allows.
    async fn pace(&self) {
        if let Some(rate) = self.rate {
            let millis = self.sent.saturating_mul(1_000) / rate;
            sleep_until(self.began + Duration::from_millis(millis)).await;
        }
    }
}

fn read_chunk(file: &dyn File, offset: u64, count: usize) -> io::Result<Chunk> {
    let mut data = vec![0; count];
    file.read_exact_at(&mut data, offset)?;
    let checksum = crc32c::crc32c(&data);
    Ok(Chunk { offset, data: data.into(), checksum })
}

impl Files {
    fn open(fs: &dyn FileSystem, directory: &Path) -> io::Result<Self> {
        let (mut infos, mut files) = (Vec::new(), Vec::new());
        let mut buffer = vec![0; CHUNK_BYTES];
        for name in fs.list(directory)? {
            let file = fs.open(&directory.join(&name))?;
            let (mut hasher, mut size) = (Xxh3::new(), 0);
            loop {
                let count = file.read_at(&mut buffer, size)?;
                if count == 0 {
                    break;
                }
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
            infos.push(FileInfo { name, size, checksum: hasher.digest() });
            files.push(file);
        }
        Ok(Self { infos, files })
    }
}
