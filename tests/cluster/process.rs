//! One `kvstore serve` process: started with its settings in the environment, killed, paused, stopped, started again on the same
//! directory and ports.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use kvstore::proto::admin::StatusRequest;
use kvstore::proto::admin::admin_service_client::AdminServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::{Channel, Endpoint};

use crate::PATIENCE;

/// How long a process that answers takes at most.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// How much of the log of a process is shown when a test fails.
const LOG_LINES_SHOWN: usize = 30;

/// A node and, while it runs, its process.
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) grpc: SocketAddr,
    /// Where it tells of itself.
    pub(crate) http: SocketAddr,
    directory: PathBuf,
    environment: Vec<(String, String)>,
    child: Option<Child>,
    /// How often it was started.
    pub(crate) starts: u32,
}

impl Process {
    /// A node that has not been started. Everything it writes goes into `directory`.
    pub(crate) fn new(
        name: &str,
        grpc: SocketAddr,
        directory: &Path,
        environment: Vec<(String, String)>,
    ) -> Self {
        std::fs::create_dir_all(directory).expect("a directory for the node");
        let (name, directory) = (name.to_owned(), directory.to_owned());
        let http = (Ipv4Addr::LOCALHOST, free_port()).into();
        Self { name, grpc, http, directory, environment, child: None, starts: 0 }
    }

    /// Has it started with another setting from now on.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(other, _)| other != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Removes all that it has stored.
    pub(crate) fn wipe(&self) {
        assert!(self.child.is_none(), "{} runs", self.name);
        std::fs::remove_dir_all(self.directory.join("data")).expect("it has been started before");
    }

    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        self.starts += 1;
        let log = File::create(self.log()).expect("a file for the log");
        let child = Command::new(env!("CARGO_BIN_EXE_kvstore"))
            .arg("serve")
            .current_dir(&self.directory)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("NODE_ID", &self.name)
            .env("NODE_HOST", "127.0.0.1")
            .env("SERVER_PORT", self.http.port().to_string())
            .env("KVSTORE_GRPC_PORT", self.grpc.port().to_string())
            .env("KVSTORE_STORAGE_DATADIR", "data")
            .env("LOGGING_FILE_NAME", "")
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("the program is built");
        self.child = Some(child);
    }

    /// Waits until it says that it is ready.
    pub(crate) async fn ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok()?) {
                panic!(
                    "{} ended with {status} instead of getting ready:\n{}",
                    self.name,
                    self.tail()
                );
            }
            let Some(why) = self.not_ready().await else { return };
            let name = &self.name;
            assert!(Instant::now() < deadline, "{name} is not ready: {why}\n{}", self.tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Why it is not ready, if it is not.
    async fn not_ready(&self) -> Option<String> {
        let Some(mut admin) = admin(self.grpc).await else {
            return Some("nobody listens".to_owned());
        };
        match admin.status(StatusRequest {}).await {
            Ok(status) if status.get_ref().ready => None,
            Ok(status) => Some(status.into_inner().not_ready_reason),
            Err(status) => Some(status.to_string()),
        }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Kills it as a crash would; it is gone when this returns.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to stop and waits until it has.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let child = self.child.as_mut().expect("it runs");
        loop {
            if let Some(status) = child.try_wait().expect("it is ours") {
                self.child = None;
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end:\n{}", self.name, self.tail());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends SIGKILL without waiting for the end, so that many can be killed at one instant.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name));
        kill_process(Pid::from_child(child), signal).expect("it is ours");
    }

    /// Waits for the end of what was killed.
    pub(crate) fn wait(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.wait().expect("it is ours");
    }

    fn log(&self) -> PathBuf {
        self.directory.join(format!("log.{}", self.starts))
    }

    /// Whether a word is in the newest log.
    pub(crate) fn has_logged(&self, word: &str) -> bool {
        std::fs::read_to_string(self.log()).is_ok_and(|log| log.contains(word))
    }

    /// The end of the newest log.
    pub(crate) fn tail(&self) -> String {
        let log = std::fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let start = lines.len().saturating_sub(LOG_LINES_SHOWN);
        format!("--- {} ---\n{}", self.log().display(), lines[start..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A connection to a node; none if it does not listen. Each call on it has the deadline of a test's own questions.
pub(crate) async fn channel(grpc: SocketAddr) -> Option<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{grpc}")).expect("an address");
    endpoint.connect_timeout(ANSWER_MAX).timeout(ANSWER_MAX).connect().await.ok()
}

/// An operator's client.
pub(crate) async fn admin(grpc: SocketAddr) -> Option<AdminServiceClient<Channel>> {
    channel(grpc).await.map(AdminServiceClient::new)
}

/// First and last port that tests give to nodes: below those that the system gives to outgoing connections, so that a node that starts
/// again finds its port free.
const PORTS: (u16, u16) = (20_000, 31_999);

/// A port of this machine that nobody uses.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let (first, last) = PORTS;
    let count = last - first + 1;
    for _ in 0..count {
        // Tests that run at the same time begin at different places.
        let offset = std::process::id().wrapping_mul(97) % u32::from(count);
        let offset = u16::try_from(offset).expect("it is below a u16");
        let port = first + (offset + NEXT.fetch_add(1, Ordering::Relaxed)) % count;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port of {first} to {last} is free");
}
