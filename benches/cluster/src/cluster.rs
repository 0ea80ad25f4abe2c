//! The processes of one system: started on free loopback ports with empty directories, stopped when dropped, whatever happened.
//!
//! Both systems run with their default settings. The environment of the caller is not theirs, nor its Ctrl-C: they are stopped here.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::options::Options;
use crate::process::Usage;
use crate::{Outcome, System};

/// How long a process may take to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ports are looked for from here on: below those that the system gives to outgoing connections.
const PORT_MIN: u16 = 21_000;

/// So many bytes of a log are shown when its process failed.
const LOG_TAIL_BYTES: usize = 2_000;

/// One process.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    /// Where it serves gRPC.
    pub address: String,
    log: PathBuf,
    child: Child,
}

impl Node {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// All processes of one system.
#[derive(Debug)]
pub struct Cluster {
    pub system: System,
    pub nodes: Vec<Node>,
    directory: PathBuf,
}

/// What every node knows of each.
struct Member {
    name: String,
    /// Where clients are served; kvstore's peers too.
    port: u16,
    /// Peers of etcd, HTTP of kvstore.
    other_port: u16,
}

impl Cluster {
    /// Starts all nodes; does not wait for them.
    pub fn start(system: System, options: &Options, settings: &[String]) -> Outcome<Self> {
        let directory = options.directory.join(system.name());
        erase(&directory)?;
        let ports = free_ports(2 * options.nodes)?;
        let member = |(number, ports): (usize, &[u16])| Member {
            name: format!("n{}", number + 1),
            port: ports[0],
            other_port: ports[1],
        };
        let members: Vec<Member> = ports.chunks_exact(2).enumerate().map(member).collect();
        let mut cluster = Self { system, nodes: Vec::new(), directory };
        for member in &members {
            let directory = cluster.directory.join(&member.name);
            fs::create_dir_all(&directory)?;
            let mut command = Command::new(options.program(system));
            command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
            match system {
                System::Etcd => etcd(&mut command, member, &members, &directory),
                System::Kvstore => kvstore(&mut command, member, &members, settings),
            }
            let log = directory.join("log");
            let output = File::create(&log)?;
            command.current_dir(&directory).process_group(0).stdin(Stdio::null());
            command.stdout(output.try_clone()?).stderr(output);
            let child = command.spawn().map_err(|error| {
                format!("cannot run {}: {error}", options.program(system).display())
            })?;
            let address = format!("http://127.0.0.1:{}", member.port);
            cluster.nodes.push(Node { name: member.name.clone(), address, log, child });
        }
        Ok(cluster)
    }

    /// Fails with the end of its log when a process is gone.
    pub fn check(&mut self) -> Outcome<()> {
        for node in &mut self.nodes {
            if let Some(status) = node.child.try_wait()? {
                let log = String::from_utf8_lossy(&fs::read(&node.log)?).into_owned();
                let from = log.floor_char_boundary(log.len().saturating_sub(LOG_TAIL_BYTES));
                let (system, name) = (self.system.name(), &node.name);
                return Err(format!("{system} {name} ended, {status}: {}", &log[from..]).into());
            }
        }
        Ok(())
    }

    /// What all processes have used so far.
    pub fn usage(&self) -> Outcome<Usage> {
        self.nodes.iter().try_fold(Usage::default(), |sum, node| Ok(sum + Usage::of(node.pid())?))
    }

    /// Stops the processes and erases what they stored.
    pub fn stop(mut self) -> Outcome<()> {
        self.check()?;
        self.end();
        erase(&self.directory)
    }

    fn end(&mut self) {
        for node in &mut self.nodes {
            if matches!(node.child.try_wait(), Ok(None)) {
                let pid = i32::try_from(node.child.id()).ok().and_then(Pid::from_raw);
                let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
            }
        }
        let deadline = Instant::now() + PATIENCE;
        for node in &mut self.nodes {
            while matches!(node.child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    eprintln!("{} {} does not stop: killed", self.system.name(), node.name);
                    let _ = node.child.kill();
                    let _ = node.child.wait();
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end();
    }
}

fn etcd(command: &mut Command, member: &Member, members: &[Member], directory: &Path) {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let listed = |member: &Member| format!("{}={}", member.name, url(member.other_port));
    let all: Vec<String> = members.iter().map(listed).collect();
    command.arg("--data-dir").arg(directory.join("data"));
    for (name, value) in [
        ("--name", member.name.clone()),
        ("--listen-client-urls", url(member.port)),
        ("--advertise-client-urls", url(member.port)),
        ("--listen-peer-urls", url(member.other_port)),
        ("--initial-advertise-peer-urls", url(member.other_port)),
        ("--initial-cluster", all.join(",")),
        ("--initial-cluster-state", "new".to_owned()),
    ] {
        command.arg(name).arg(value);
    }
}

fn kvstore(command: &mut Command, member: &Member, members: &[Member], settings: &[String]) {
    let listed = |member: &Member| format!("{}=127.0.0.1:{}", member.name, member.port);
    let all: Vec<String> = members.iter().map(listed).collect();
    command
        .arg("serve")
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        .env("NODE_ID", &member.name)
        .env("NODE_HOST", "127.0.0.1")
        .env("SERVER_PORT", member.other_port.to_string())
        .env("KVSTORE_GRPC_PORT", member.port.to_string())
        .env("KVSTORE_STORAGE_DATADIR", "data");
    if members.len() > 1 {
        command.env("KVSTORE_CLUSTER_MEMBERS", all.join(","));
    }
}

/// Ports of the loopback address on which nobody listens now.
fn free_ports(count: usize) -> Outcome<Vec<u16>> {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let ports: Vec<u16> = (PORT_MIN..u16::MAX).filter(is_free).take(count).collect();
    if ports.len() < count {
        return Err(format!("no {count} free ports from {PORT_MIN} on").into());
    }
    Ok(ports)
}

fn erase(directory: &Path) -> Outcome<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot erase {}: {error}", directory.display()).into())
        }
        _ => Ok(()),
    }
}
