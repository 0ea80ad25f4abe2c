//! CPU time of this process and of the server, and a server of our own to measure.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};

use super::args::temporary_directory;
use super::{Error, system};
use crate::net::Endpoint;

/// How long a server may take to start and to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ticks of `/proc/PID/stat` in a second: fixed at 100 in the interface to programs (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// CPU time that this process has used.
pub(super) fn own_cpu() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Reads the CPU time of a server on this machine.
#[derive(Debug, Clone)]
pub(super) struct ServerCpu {
    pid: u32,
}

impl ServerCpu {
    /// Of process `pid`, which must be there.
    pub(super) fn new(pid: u32) -> Result<Self, Error> {
        let server = Self { pid };
        server.used()?;
        Ok(server)
    }

    /// What it has used since its start, in all threads, those that ended included; to 10 ms.
    pub(super) fn used(&self) -> Result<Duration, Error> {
        let path = format!("/proc/{}/stat", self.pid);
        let stat = fs::read_to_string(&path)
            .map_err(|error| Error::Server(format!("cannot read {path}: {error}")))?;
        cpu_of(&stat).ok_or_else(|| Error::Server(format!("{path} is not as proc(5) says")))
    }
}

/// User and system time in a line of `/proc/PID/stat`: fields 14 and 15. The name, in parentheses, may hold anything.
fn cpu_of(stat: &str) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * user + TICK * system)
}

/// A server of this program, as a child process. Dropped, it is stopped and its directory removed.
pub(super) struct OwnServer {
    child: Child,
    directory: PathBuf,
    pub(super) grpc: Endpoint,
    pub(super) http: Endpoint,
}

impl OwnServer {
    /// Starts one on free ports and waits until it is ready.
    pub(super) fn start(settings: &[String]) -> Result<Self, Error> {
        let program = std::env::current_exe().map_err(system("the path of this program"))?;
        Self::start_program(Command::new(program), settings)
    }

    fn start_program(mut command: Command, settings: &[String]) -> Result<Self, Error> {
        let directory = temporary_directory();
        fs::create_dir(&directory).map_err(system("a temporary directory"))?;
        let mut set = vec![
            "server.address=127.0.0.1".to_owned(),
            "server.port=0".to_owned(),
            "kvstore.grpc.port=0".to_owned(),
            "kvstore.storage.engine=memory".to_owned(),
            format!("kvstore.storage.data-dir={}", directory.join("data").display()),
        ];
        set.extend(settings.iter().cloned());
        set.extend(
            ["logging.file.name=", "logging.level=info", "logging.format=json"].map(str::to_owned),
        );
        command.arg("serve").args(set.iter().flat_map(|setting| ["--set", setting]));
        // No application.yml of the caller's directory, and no Ctrl-C that is meant for this process.
        command.current_dir(&directory).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.spawn().map_err(|error| {
            let _ = fs::remove_dir_all(&directory);
            system("to start the server")(error)
        })?;
        // From here on dropping cleans up.
        let nowhere: Endpoint = Endpoint::DEFAULT.parse().expect("the default is legal");
        let mut server = Self { child, directory, grpc: nowhere.clone(), http: nowhere };
        let log = server.child.stdout.take().expect("it was asked for");
        let (ready, is_ready) = sync_channel(1);
        let named = thread::Builder::new().name("server log".to_owned());
        named.spawn(move || watch(log, &ready)).map_err(system("a thread"))?;
        match is_ready.recv_timeout(PATIENCE) {
            Ok((grpc, http)) => {
                (server.grpc, server.http) = (grpc, http);
                Ok(server)
            }
            Err(_) => Err(Error::Server(
                "the server did not become ready; its reason stands above".to_owned(),
            )),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// Reads the log to its end, so that the pipe never fills, and tells the addresses once.
fn watch(log: ChildStdout, ready: &SyncSender<(Endpoint, Endpoint)>) {
    for line in BufReader::new(log).lines().map_while(Result::ok) {
        if let Some(addresses) = addresses(&line) {
            let _ = ready.try_send(addresses);
        }
    }
}

/// The addresses in the line of the log that says "ready".
fn addresses(line: &str) -> Option<(Endpoint, Endpoint)> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    if line["message"] != "ready" {
        return None;
    }
    Some((line["grpc"].as_str()?.parse().ok()?, line["http"].as_str()?.parse().ok()?))
}

/// Sends a signal to a process that may have ended.
pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.child.id(), Signal::TERM);
            let deadline = Instant::now() + PATIENCE;
            while matches!(self.child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_stands_behind_a_name_that_may_hold_anything() {
        let stat = "77 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 250 0 0 20 0 9 0 1 2 3";
        assert_eq!(cpu_of(stat), Some(Duration::from_secs(4)));
        for broken in ["", "77 (a) S 1 2", "77 (a) S 1 2 3 4 5 6 7 8 9 10 x 1"] {
            assert_eq!(cpu_of(broken), None, "{broken}");
        }
    }

    #[test]
    fn cpu_time_grows_with_work() {
        let server = ServerCpu::new(std::process::id()).expect("this process is there");
        let (own, read) = (own_cpu(), server.used().expect("readable"));
        let mut number = 1_u64;
        while own_cpu() < own + Duration::from_millis(30) {
            number = std::hint::black_box(number.wrapping_mul(3));
        }
        assert!(server.used().expect("readable") > read);
        assert!(ServerCpu::new(u32::MAX).is_err());
    }

    #[test]
    fn the_addresses_are_in_the_line_that_says_ready() {
        let line = r#"{"message":"ready","http":"127.0.0.1:8080","grpc":"127.0.0.1:9090"}"#;
        let (grpc, http) = addresses(line).expect("ready");
        assert_eq!(
            (grpc.to_string().as_str(), http.to_string().as_str()),
            ("127.0.0.1:9090", "127.0.0.1:8080")
        );
        for line in ["", "{}", r#"{"message":"stopping","http":"a:1","grpc":"a:2"}"#] {
            assert!(addresses(line).is_none(), "{line}");
        }
    }

    #[test]
    fn a_program_that_ends_at_once_is_no_server_and_leaves_nothing() {
        let error = OwnServer::start_program(Command::new("true"), &[]).err().expect("no server");
        assert!(error.to_string().contains("did not become ready"), "{error}");
    }
}
