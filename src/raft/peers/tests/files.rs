//! Files from one node to another: whole, resumed, damaged, with names that lead elsewhere.

use std::num::NonZeroU64;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

use super::handshake::{connect, shake};
use super::*;
use crate::proto::raft::{
    Chunk, FileInfo, FileList, SendFilesRequest, SendFilesResponse, Wanted, send_files_request,
    send_files_response,
};
use crate::raft::peers::handshake::Calling;
use crate::raft::progress::Progress;

/// n1, which has files; n2, which takes them.
struct World {
    sender: Node,
    receiving: Node,
    receiver: Arc<Double>,
    source: tempfile::TempDir,
    staging: tempfile::TempDir,
    /// Of what is sent.
    progress: Arc<Progress>,
}

/// Bytes that are nowhere the same.
fn content(bytes: usize) -> Vec<u8> {
    (0u64..)
        .flat_map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .take(bytes)
        .collect()
}

impl World {
    fn new() -> Self {
        let receiver = Double::new();
        let sender = Node::start(member("n1", 1), &Double::new());
        let receiving = Node::start(member("n2", 2), &receiver);
        sender.knows(&[&receiving]);
        let [source, staging] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        *receiver.staging.lock() = Some(staging.path().join("incoming"));
        Self { sender, receiving, receiver, source, staging, progress: Arc::default() }
    }

    fn with(files: &[(&str, usize)]) -> Self {
        let world = Self::new();
        for (name, bytes) in files {
            std::fs::write(world.source.path().join(name), content(*bytes)).expect("a file");
        }
        world
    }

    fn incoming(&self) -> PathBuf {
        self.staging.path().join("incoming")
    }

    fn send(&self) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let header = Bytes::from_static(b"snapshot 7");
        let (directory, progress) = (self.source.path().to_owned(), Arc::clone(&self.progress));
        self.sender.transport.send_files(&name("n2"), header, directory, progress)
    }

    /// The last files that came whole.
    fn installed(&self) -> Files {
        let installed = self.receiver.installed.lock();
        let (header, files) = installed.last().expect("files came");
        assert_eq!(header, "snapshot 7");
        files.clone()
    }

    /// A transfer by hand, whose list is out.
    async fn by_hand(&self, header: &'static str, files: Vec<FileInfo>) -> Result<ByHand, Status> {
        let local = &self.sender.local;
        let calling = Calling::new(&local.who, &local.standing(), Some(&name("n2")));
        let mut client = connect(&self.receiving).await;
        let prove = |challenge| calling.prove(&local.secret, &challenge).expect("a challenge");
        let welcome = shake(&mut client, calling.hello(), prove).await?;
        let (steps, outgoing) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        let token = MetadataValue::from_bytes(&welcome.token);
        request.metadata_mut().insert_bin(TOKEN_HEADER, token);
        let list = FileList { header: header.into(), files };
        let step = Some(send_files_request::Step::List(list));
        steps.send(SendFilesRequest { step }).await.expect("there is room");
        let answers = client.send_files(request).await?.into_inner();
        Ok(ByHand { steps, answers })
    }
}

struct ByHand {
    steps: mpsc::Sender<SendFilesRequest>,
    answers: Streaming<SendFilesResponse>,
}

impl ByHand {
    async fn wanted(&mut self) -> Result<(u32, u64), Status> {
        match self.answers.message().await?.and_then(|answer| answer.step) {
            Some(send_files_response::Step::Wanted(Wanted { file, offset })) => Ok((file, offset)),
            other => panic!("nothing is wanted: {other:?}"),
        }
    }

    async fn chunk(&self, offset: u64, data: &[u8]) {
        let checksum = crc32c::crc32c(data);
        self.any_chunk(Chunk { offset, data: Bytes::copy_from_slice(data), checksum }).await;
    }

    async fn any_chunk(&self, chunk: Chunk) {
        let step = Some(send_files_request::Step::Chunk(chunk));
        self.steps.send(SendFilesRequest { step }).await.expect("there is room");
    }
}

fn info(name: &str, content: &[u8]) -> FileInfo {
    let checksum = xxhash_rust::xxh3::xxh3_64(content);
    FileInfo { name: name.to_owned(), size: content.len() as u64, checksum }
}

/// Returns when `path` has at least `bytes`.
async fn grown(path: &Path, bytes: u64) {
    let until = Instant::now() + PATIENCE;
    while !std::fs::metadata(path).is_ok_and(|file| file.len() >= bytes) {
        assert!(Instant::now() < until, "{} does not grow", path.display());
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn files_arrive_byte_for_byte_and_nothing_else_is_there() {
    let files =
        [("000001.sst", 3 << 20), ("000002.sst", (512 << 10) + 1), ("CURRENT", 1), ("empty", 0)];
    let world = World::with(&files);
    std::fs::create_dir(world.incoming()).expect("a directory");
    std::fs::write(world.incoming().join("left-over"), "x").expect("a file");
    assert_eq!(world.send().await.expect("a reply"), "installed");
    assert_eq!(world.installed(), read_all(world.source.path()));
    let bytes: usize = files.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(world.sender.transport.sent().files(), bytes as u64);
}

#[tokio::test]
async fn a_transfer_that_broke_off_goes_on_where_it_was() {
    let world = World::with(&[("a", 2 << 20), ("b", 8 << 20)]);
    // Slow enough to be caught in the middle of the second file.
    let slow = {
        let runtime = world.sender.runtime.as_ref().expect("it runs");
        let _inside = runtime.enter();
        GrpcTransport::new(Arc::clone(&world.sender.local), fs(), NonZeroU64::new(8 << 20))
    };
    let header = Bytes::from_static(b"snapshot 7");
    let (directory, progress) = (world.source.path().to_owned(), Arc::<Progress>::default());
    let mut first = slow.send_files(&name("n2"), header, directory, Arc::clone(&progress));
    let second_file = world.incoming().join("b");
    tokio::select! {
        done = &mut first => panic!("it is slow: {done:?}"),
        () = grown(&second_file, 1) => {}
    }
    drop(first);
    let copied = progress.copied().expect("it has begun");
    assert_eq!(copied.of, 10 << 20);
    assert!(copied.bytes > 2 << 20 && copied.left.is_some(), "{copied:?}");
    assert!(world.receiver.installed.lock().is_empty());

    // What is there is not asked for again.
    let (a, b) = (content(2 << 20), content(8 << 20));
    let infos = vec![info("a", &a), info("b", &b)];
    let mut hand = world.by_hand("snapshot 7", infos).await.expect("let in");
    let (file, offset) = hand.wanted().await.expect("the rest");
    assert_eq!(file, 1, "the first file is there");
    let there = std::fs::metadata(&second_file).expect("it is there").len();
    assert!(offset > 0 && offset == there, "{offset} of {there}");
    let at = usize::try_from(offset).expect("small");
    hand.chunk(offset, &b[at..at + 1_000]).await;
    grown(&second_file, offset + 1_000).await;
    drop(hand);

    assert_eq!(world.send().await.expect("a reply"), "installed");
    let rest = (8 << 20) - offset - 1_000;
    assert_eq!(world.sender.transport.sent().files(), rest, "only what was missing");
    let copied = world.progress.copied().expect("it is done");
    assert_eq!((copied.bytes, copied.of, copied.left), (10 << 20, 10 << 20, Some(Duration::ZERO)));
    assert_eq!(world.installed(), read_all(world.source.path()));
}

#[tokio::test]
async fn a_receiver_that_was_killed_goes_on_with_what_it_has() {
    let mut world = World::with(&[("a", 1 << 20)]);
    let a = content(1 << 20);
    let mut hand = world.by_hand("snapshot 7", vec![info("a", &a)]).await.expect("let in");
    assert_eq!(hand.wanted().await.expect("all of it"), (0, 0));
    hand.chunk(0, &a[..300_000]).await;
    grown(&world.incoming().join("a"), 300_000).await;
    let address = {
        let placeholder = Node::start(member("n2", 2), &Double::new());
        std::mem::replace(&mut world.receiving, placeholder).kill()
    };
    assert!(hand.answers.message().await.is_err(), "it was killed");
    world.receiving = Node::start_at(member("n2", 2), address);
    world.receiving.service.receive_with(Arc::clone(&world.receiver) as Arc<dyn Receiver>);
    let mut hand = world.by_hand("snapshot 7", vec![info("a", &a)]).await.expect("let in");
    assert_eq!(hand.wanted().await.expect("the rest"), (0, 300_000));
    drop(hand);
    assert_eq!(world.send().await.expect("a reply"), "installed");
    assert_eq!(world.installed(), read_all(world.source.path()));
}

#[tokio::test]
async fn a_byte_that_flips_anywhere_is_found() {
    let world = World::with(&[("a", 100_000)]);
    let a = content(100_000);
    let path = world.incoming().join("a");
    // On the wire.
    let mut hand = world.by_hand("snapshot 7", vec![info("a", &a)]).await.expect("let in");
    assert_eq!(hand.wanted().await.expect("all of it"), (0, 0));
    hand.chunk(0, &a[..50_000]).await;
    let mut flipped = a[50_000..].to_vec();
    let checksum = crc32c::crc32c(&flipped);
    flipped[777] ^= 1;
    hand.any_chunk(Chunk { offset: 50_000, data: flipped.into(), checksum }).await;
    let refused = hand.answers.message().await.expect_err("it is damaged");
    assert_eq!(refused.code(), Code::DataLoss);
    assert_eq!(refused.message(), "file a at offset 50000: a chunk was damaged on its way");
    assert_eq!(std::fs::read(&path).expect("it is there"), a[..50_000], "the rest stays");

    // On the receiver's disk, in what an earlier attempt brought.
    let mut there = a[..50_000].to_vec();
    there[123] ^= 1;
    std::fs::write(&path, &there).expect("a file");
    let wrong = "file a has not the checksum that was announced; the next attempt sends it whole";
    let failure = world.send().await.expect_err("it is damaged");
    assert_eq!(failure, Failure::Lost(format!("node n2: {wrong}")));
    assert_eq!(std::fs::metadata(&path).expect("it is there").len(), 0);

    // In a file that was whole.
    assert_eq!(world.send().await.expect("a reply"), "installed");
    assert_eq!(world.installed(), read_all(world.source.path()));
    let mut there = a.clone();
    there[99_999] ^= 1;
    std::fs::write(&path, &there).expect("a file");
    assert_eq!(world.send().await.expect("a reply"), "installed");
    assert_eq!(world.installed(), read_all(world.source.path()));

    // On the sender's side, after it was announced.
    std::fs::remove_file(&path).expect("it is there");
    let mut hand = world.by_hand("snapshot 7", vec![info("a", &a)]).await.expect("let in");
    assert_eq!(hand.wanted().await.expect("all of it"), (0, 0));
    let mut other = a.clone();
    other[5] ^= 1;
    hand.chunk(0, &other).await;
    let refused = hand.answers.message().await.expect_err("it is another");
    assert_eq!((refused.code(), refused.message()), (Code::DataLoss, wrong));
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_is_refused_before_anything_is_written() {
    let world = World::new();
    for bad in ["../x", "..", "a/b", "/tmp/x", "a\\b", ".x", ""] {
        let files = vec![info("good", b"1"), info(bad, b"2")];
        let mut hand = world.by_hand("snapshot 7", files).await.expect("let in");
        let refused = hand.wanted().await.expect_err(bad);
        assert_eq!(
            refused.message(),
            format!(
                "a file named {bad:?} is not taken; a name has 1 to 128 characters of A-Z a-z 0-9 . _ - and does not begin with a dot"
            )
        );
    }
    let twice = vec![info("a", b"1"), info("a", b"2")];
    let mut hand = world.by_hand("snapshot 7", twice).await.expect("let in");
    let refused = hand.wanted().await.expect_err("twice");
    assert_eq!(refused.message(), "file a is in the list twice");
    assert!(read_all(world.staging.path()).is_empty());
    // The sender's own files are no exception.
    std::fs::write(world.source.path().join(".hidden"), "x").expect("a file");
    let failure = world.send().await.expect_err("it does not go");
    assert!(matches!(&failure, Failure::Lost(why) if why.contains("\".hidden\"")), "{failure:?}");
}

#[tokio::test]
async fn chunks_that_were_not_asked_for_are_refused() {
    let world = World::new();
    let a = content(1_000);
    for (chunk_offset, bytes, what) in [
        (1, 10, "a chunk is for another offset"),
        (0, 1_001, "a chunk has a size that is not allowed"),
        (0, 0, "a chunk has a size that is not allowed"),
    ] {
        let mut hand = world.by_hand("snapshot 7", vec![info("a", &a)]).await.expect("let in");
        assert_eq!(hand.wanted().await.expect("all of it"), (0, 0));
        hand.chunk(chunk_offset, &content(bytes)).await;
        let refused = hand.answers.message().await.expect_err("it is not right");
        assert_eq!(refused.message(), format!("file a at offset 0: {what}"));
    }
    let too_much = FileInfo { size: 1 << 60, ..info("a", &a) };
    let mut hand = world.by_hand("snapshot 7", vec![too_much]).await.expect("let in");
    let refused = hand.wanted().await.expect_err("no disk is that large");
    assert!(refused.message().starts_with("1152921504606846976 bytes are to come, "), "{refused}");
}

#[tokio::test]
async fn what_the_receiver_does_not_want_is_answered_at_once() {
    let world = World::with(&[("a", 1_000)]);
    *world.receiver.staging.lock() = None;
    assert_eq!(world.send().await.expect("a reply"), "no files are wanted here");
    assert!(world.receiver.installed.lock().is_empty());
}

#[tokio::test]
async fn only_so_many_transfers_go_on_at_a_time() {
    let world = World::new();
    let a = content(1_000);
    let mut first = world.by_hand("one", vec![info("a", &a)]).await.expect("let in");
    let mut second = world.by_hand("two", vec![info("a", &a)]).await.expect("let in");
    first.wanted().await.expect("it goes on");
    second.wanted().await.expect("it goes on");
    let mut third = world.by_hand("three", vec![info("a", &a)]).await.expect("let in");
    let refused = third.wanted().await.expect_err("two go on");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "2 transfers of files are going on");
    // The same files again wait for the first attempt to end.
    let mut again = world.by_hand("one", vec![info("a", &a)]).await.expect("let in");
    drop(first);
    assert_eq!(again.wanted().await.expect("it goes on"), (0, 0));
    drop((second, again));
}

#[tokio::test]
async fn a_node_that_is_not_there_gets_no_files() {
    let world = World::with(&[("a", 1_000)]);
    let failure = world.sender.transport.send_files(
        &name("n9"),
        Bytes::new(),
        world.source.path().to_owned(),
        Arc::default(),
    );
    let expected = Failure::Unreachable("node n9: its address is not known".into());
    assert_eq!(failure.await, Err(expected));
    let nowhere = world.source.path().join("nowhere");
    let transport = &world.sender.transport;
    let failure = transport.send_files(&name("n2"), Bytes::new(), nowhere, Arc::default()).await;
    assert!(
        matches!(&failure, Err(Failure::Unreachable(why)) if why.starts_with("node n2: cannot read ")),
        "{failure:?}"
    );
}
