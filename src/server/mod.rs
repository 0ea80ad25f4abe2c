//! One node: builds every part, spawns every task that lives long, and stops them in order.
//!
//! Start: storage, then ports, then ready. A failure at any step ends the start with one sentence; nothing half started stays.
//!
//! Stop: not ready (health says so) - no more connections and calls, GOAWAY on those that are open, sessions end - calls that
//! run may finish, for at most `kvstore.shutdown.timeout` - what is queued is written - engines are flushed - done.

mod cluster;
mod forming;
mod identity;
mod listen;
mod membership;
mod process;
mod restore;
mod storage;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;

use self::listen::{Listener, Shared};
pub use self::process::run;
pub use self::restore::restore;
use self::storage::Storage;
use self::workers::{Threads, Workers};
use crate::api::{self, AdminApi, Alone, Api, InFlight, Node, Operations, Reporter};
use crate::config::{self, Config, Loaded};
use crate::proto::admin::ConfigValue;
use crate::telemetry::{ComponentHealth, EngineCollector, Health, Metrics, Status};
use crate::types::Limits;
use crate::util::fs::{FileSystem as _, RealFileSystem};

/// Why a node does not start, or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port cannot be opened.
    #[error("cannot listen for {name} on {address}: {source}")]
    Listen {
        /// Which port.
        name: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A file cannot be read or written.
    #[error("cannot {operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The data directory or backup belongs to another configuration, or is damaged.
    #[error("{0}")]
    Foreign(String),
    /// The storage engine cannot be opened, flushed or closed.
    #[error("storage: {0}")]
    Storage(String),
    /// The configuration asks for what this build does not do.
    #[error("{0}")]
    Unsupported(String),
    /// The log cannot be written.
    #[error("cannot open the log: {0}")]
    Log(io::Error),
    /// The operating system gives no more threads or signal handlers.
    #[error("the operating system refused a thread or signal handler: {0}")]
    Thread(io::Error),
}

impl Error {
    fn file(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { operation, path: path.to_owned(), source }
    }
}

/// A node that runs. Dropping it without [`Server::stop`] leaves tasks running until the runtime ends.
pub struct Server {
    /// Where HTTP is served.
    pub http_address: SocketAddr,
    /// Where gRPC is served; `None` when it is switched off.
    pub grpc_address: Option<SocketAddr>,
    config: Config,
    health: Arc<Health>,
    reporter: Reporter,
    api: Api,
    storage: Storage,
    ports: Vec<JoinHandle<()>>,
    workers: Arc<Workers>,
    tasks: Vec<JoinHandle<()>>,
    /// A member that has not met its cluster yet.
    joining: Option<JoinHandle<Result<(), Error>>>,
    stopping: CancellationToken,
}

impl Server {
    /// Starts a node. It is ready when this returns.
    ///
    /// # Errors
    ///
    /// See [`enum@Error`]; nothing is left running.
    pub async fn start(loaded: &Loaded, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let config = loaded.config.clone();
        check_supported(&config)?;
        let stopping = CancellationToken::new();
        let (opened, stopped) = (config.clone(), stopping.clone());
        let storage = tokio::task::spawn_blocking(move || Storage::open(&opened, &stopped))
            .await
            .unwrap_or_else(|error| Err(Error::Storage(error.to_string())))?;

        let http =
            Listener::bind("HTTP", (config.server.address, config.server.port).into()).await?;
        let grpc = if config.grpc.enabled {
            Some(Listener::bind("gRPC", (config.server.address, config.grpc.port).into()).await?)
        } else {
            None
        };

        let health = Arc::new(Health::new());
        register_checks(&health, &storage, &config);
        let node = Node {
            id: config.node.id.clone(),
            started: Instant::now(),
            environment: Arc::clone(&storage.environment),
        };
        let in_flight =
            InFlight::new(config.limits.in_flight_requests, config.limits.in_flight_size);
        watch(&metrics, &storage, &in_flight);
        let grpc_port = grpc.as_ref().map_or(http.address.port(), |grpc| grpc.address.port());
        let address = config.node.address(grpc_port);
        let cluster: Arc<dyn api::Operate> = match &storage.cluster {
            Some(cluster) => Arc::new(cluster.view()),
            None => Arc::new(Alone::new(node.id.clone(), address, config.hash_ring.shards)),
        };
        let api = Api::new(
            storage.router.clone(),
            limits(&config),
            Arc::clone(&metrics),
            node,
            cluster,
            stopping.clone(),
        );
        let operations = Operations {
            health: Arc::clone(&health),
            config: settings(loaded),
            backups: config.backup.dir.clone(),
        };
        let (routes, reporter) =
            api::grpc_routes(&api, AdminApi::new(api.clone(), operations)).await;
        let actuator = api::actuator::router(metrics, Arc::clone(&health), actuator_info(&config));
        let web = api::http_router(&api, routes.clone(), actuator, &config.cors.origins);

        let workers = Workers::start(Threads::new(config.cluster.is_set()).serving);
        let workers = Arc::new(workers.map_err(Error::Thread)?);
        let shared = Shared {
            http2: config.http2.clone(),
            connections: Arc::new(Semaphore::new(config.http2.connections_max)),
            in_flight,
            workers: Arc::clone(&workers),
            stopping: stopping.clone(),
        };
        let (http_address, grpc_address) = (http.address, grpc.as_ref().map(|grpc| grpc.address));
        let mut ports = vec![http.serve(web.into(), true, &shared)];
        let routes = match &storage.cluster {
            // Peers meet on the gRPC port only.
            Some(cluster) => routes.add_service(cluster.service().into_server()),
            None => routes,
        };
        ports.extend(grpc.map(|grpc| grpc.serve(routes, false, &shared)));
        let tasks = storage.start_tasks(&config, &stopping);
        let joining = storage.cluster.clone().map(|cluster| tokio::spawn(cluster.join(grpc_port)));
        let server = Self {
            http_address,
            grpc_address,
            config,
            health,
            reporter,
            api,
            storage,
            ports,
            workers,
            tasks,
            joining,
            stopping,
        };
        if server.joining.is_none() {
            server.accept(true).await;
        }
        Ok(server)
    }

    /// Waits until the node serves: at once when it runs alone; a member has to meet its cluster first.
    ///
    /// # Errors
    ///
    /// When it cannot be a member as it is set up; [`Self::stop`] it then.
    pub async fn joined(&mut self) -> Result<(), Error> {
        let Some(joining) = &mut self.joining else { return Ok(()) };
        let joined = joining.await;
        // Also where it failed: a task that has ended must not be waited for again, as a stop would.
        self.joining = None;
        joined.unwrap_or_else(|error| Err(Error::Storage(error.to_string())))?;
        self.accept(true).await;
        if let Some(cluster) = self.storage.cluster.clone() {
            let (api, stopping) = (self.api.clone(), self.stopping.clone());
            self.tasks.push(tokio::spawn(async move {
                if let Some(why) = stopping.run_until_cancelled(cluster.gone()).await {
                    tracing::warn!("{why}");
                    api.close();
                }
            }));
        }
        Ok(())
    }

    /// Says over every channel whether requests should come here.
    async fn accept(&self, accepting: bool) {
        self.health.set_accepting(accepting);
        let status = if accepting { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", api::SERVICE_NAME] {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Stops the node: see the order above.
    ///
    /// # Errors
    ///
    /// When the engines cannot be flushed; what was acknowledged is safe all the same.
    pub async fn stop(self) -> Result<(), Error> {
        self.accept(false).await;
        if let Some(joining) = self.joining {
            joining.abort();
            // Aborted, or it has ended.
            let _ = joining.await;
        }
        let cluster = self.storage.cluster.clone();
        if let Some(cluster) = &cluster {
            cluster.hand_over().await;
        }
        self.stopping.cancel();
        let drained = timeout(self.config.shutdown.timeout, async {
            for port in self.ports {
                // A port that ended in a panic was reported by its hook.
                let _ = port.await;
            }
        });
        if drained.await.is_err() {
            tracing::warn!("calls still ran after kvstore.shutdown.timeout and were cut off");
        }
        self.api.close();
        let workers = self.workers;
        // A panic there would be one of `join` itself.
        let _ = tokio::task::spawn_blocking(move || workers.stop()).await;
        for task in self.tasks {
            let _ = task.await;
        }
        if let Some(cluster) = &cluster {
            cluster.stop().await;
        }
        let storage = self.storage;
        drop(self.api);
        tokio::task::spawn_blocking(move || storage.close())
            .await
            .unwrap_or_else(|error| Err(Error::Storage(error.to_string())))
    }
}

fn check_supported(config: &Config) -> Result<(), Error> {
    if config.cluster.is_set() && config.storage.engine == config::Engine::Memory {
        let message = "kvstore.storage.engine: memory forgets what it voted for and acknowledged; in a cluster set lsm or sled";
        return Err(Error::Unsupported(message.to_owned()));
    }
    Ok(())
}

fn limits(config: &Config) -> Limits {
    let limits = &config.limits;
    Limits {
        key_bytes: limits.key_size,
        value_bytes: limits.value_size,
        batch_entries: limits.batch_entries,
        batch_bytes: limits.batch_size,
        page_items_default: limits.page_items_default,
        page_items: limits.page_items,
        page_bytes: limits.page_size,
        request_bytes: limits.request_size,
        session_operations: limits.session_operations,
        session_bytes: limits.session_size,
        deadline_default: limits.deadline_default,
        deadline_max: limits.deadline_max,
        leases: config.raft.leases,
    }
}

fn settings(loaded: &Loaded) -> Vec<ConfigValue> {
    let value = |setting: &crate::config::Setting| ConfigValue {
        key: setting.key.clone(),
        value: setting.value.clone(),
        origin: setting.origin.to_string(),
    };
    loaded.settings.iter().map(value).collect()
}

fn actuator_info(config: &Config) -> api::actuator::Info {
    api::actuator::Info {
        node: config.node.id.clone(),
        host: config.node.host.clone(),
        engine: config.storage.engine.as_str().to_owned(),
        shards: config.hash_ring.shards,
        limits: limits(config),
    }
}

/// What the health and readiness of the node depend on.
fn register_checks(health: &Health, storage: &Storage, config: &Config) {
    let environment = Arc::clone(&storage.environment);
    health.register(
        "storage",
        Box::new(move || {
            let writable = environment.status().writable;
            let status = if writable { Status::Up } else { Status::Down };
            ComponentHealth::new(status)
                .detail("engine", environment.kind())
                .detail("writable", writable)
        }),
    );
    let environment = Arc::clone(&storage.environment);
    health.ready_while(Box::new(move || environment.status().writable));
    if let Some(cluster) = &storage.cluster {
        let (shards, ready) = (Arc::clone(cluster), Arc::clone(cluster));
        health.register("shards", Box::new(move || shards.health()));
        health.ready_while(Box::new(move || ready.is_ready()));
    }
    let (directory, free_min) = (config.storage.data_dir.clone(), config.storage.disk_free_min);
    if storage.environment.kind() != "memory" {
        health.register(
            "diskSpace",
            Box::new(move || match RealFileSystem.space(&directory) {
                Ok(space) => {
                    let status = if space.available > free_min { Status::Up } else { Status::Down };
                    ComponentHealth::new(status)
                        .detail("total", space.total)
                        .detail("free", space.available)
                        .detail("threshold", free_min)
                        .detail("path", directory.display().to_string())
                        .detail("exists", true)
                }
                Err(error) => {
                    ComponentHealth::new(Status::Unknown).detail("error", error.to_string())
                }
            }),
        );
    }
}

/// Sets the gauges that others know, when metrics are read.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures are whole numbers of bytes, and not negative"
)]
fn watch(metrics: &Arc<Metrics>, storage: &Storage, in_flight: &Arc<InFlight>) {
    let environment = Arc::clone(&storage.environment);
    let (requests, bytes) = (metrics.inflight_requests.clone(), metrics.inflight_bytes.clone());
    let (cache, memtable) = (metrics.memory_usage("cache"), metrics.memory_usage("memtable"));
    let (log, tables) = (metrics.disk_usage("log"), metrics.disk_usage("tables"));
    let (fsync, group) = (metrics.wal_fsync.clone(), metrics.wal_group_size.clone());
    let in_flight = Arc::clone(in_flight);
    let cluster = storage.cluster.clone();
    let (messages, files) = (metrics.peer_sent("messages"), metrics.peer_sent("files"));
    let counting = Mutex::new(());
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    metrics.on_scrape(Box::new(move || {
        let status = environment.status();
        let part = |name: &str| status.figures.get(name).map_or(0, |&figure| figure as u64);
        let replicated = cluster.as_ref().map(|cluster| cluster.log());
        let (memtable_bytes, own_log) = (part("memtable_bytes"), part("log_bytes"));
        memtable.set(gauge(memtable_bytes));
        cache.set(gauge(status.memory_bytes.saturating_sub(memtable_bytes)));
        log.set(gauge(own_log + replicated.as_ref().map_or(0, |log| log.disk_bytes)));
        tables.set(gauge(status.disk_bytes.saturating_sub(own_log)));
        requests.set(gauge(in_flight.requests() as u64));
        bytes.set(gauge(in_flight.bytes() as u64));
        if let Some(cluster) = &cluster {
            let _one_at_a_time = counting.lock();
            let sent = cluster.sent();
            messages.inc_by(sent.messages().saturating_sub(messages.get()));
            files.inc_by(sent.files().saturating_sub(files.get()));
        }
        // In a cluster the engines have no log of their own.
        if let Some(counts) = replicated.map(|log| log.counts).or(status.log) {
            fsync.set(&counts.sync_micros.buckets, counts.sync_micros.sum);
            group.set(&counts.sync_group.buckets, counts.sync_group.sum);
        }
    }));
    let environment = Arc::clone(&storage.environment);
    let figures = EngineCollector::new(Box::new(move || environment.status().figures));
    metrics.register(Box::new(figures)).expect("its metrics have names of their own");
}
