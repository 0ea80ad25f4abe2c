//! From a data directory and the configuration to a member of a cluster.
//!
//! Order: the data directory is opened ([`DataDirectory`]), [`local`] makes of it what peers see of this node, its service is on the gRPC port, [`form`] waits until
//! the cluster is formed, or [`join`] until a cluster that exists has taken this node in, and makes that durable. Only then may Raft groups be opened: a vote must not be given by
//! a directory that its cluster does not know.

use std::sync::Arc;

use super::Error;
use super::identity::{DataDirectory, Identity, Place};
use crate::cluster::{Formed, NodeName};
use crate::config::Config;
use crate::net::Endpoint;
use crate::raft::peers::{self, About, Addresses, Joined, Local, Secret, Who};
use crate::util::fs::RealFileSystem;

/// What peers see of the node of this directory; `None` for a node by itself.
///
/// # Errors
///
/// When an address in the configuration is none.
pub(super) fn local(identity: &Identity, config: &Config) -> Result<Option<Arc<Local>>, Error> {
    let Place::Member(standing) = &identity.place else { return Ok(None) };
    let mut addresses = Addresses::new();
    for member in &config.cluster.members {
        let endpoint = endpoint("kvstore.cluster.members", &member.address)?;
        addresses.insert(NodeName(member.node.clone()), endpoint);
    }
    let who = Who {
        node: NodeName(identity.node.clone()),
        incarnation: identity.incarnation,
        shards: identity.shards,
    };
    let secret = Secret::new(config.cluster.secret.clone());
    Ok(Some(Local::new(who, secret, standing.clone(), addresses)))
}

/// Waits until the cluster of `data` is formed, and lets peers know once that is durable. At once when it was formed before. Until it ends the service for
/// peers has to be served; it ends when all members have met, or when it is dropped, after which it may be called anew.
///
/// # Errors
///
/// [`Error::Foreign`], with what another node said, when this one cannot become a member as it is set up: it has to end with that. Or the disk's.
pub(super) async fn form(
    data: DataDirectory,
    local: &Local,
) -> Result<(DataDirectory, Formed), Error> {
    let formed = peers::form(local).await.map_err(|refusal| Error::Foreign(refusal.message))?;
    let data = make_durable(data, &formed).await?;
    local.set_formed(formed.clone());
    Ok((data, formed))
}

/// Waits until a cluster that exists has the node of `data`, which is `about`, among its members, and lets peers know once that is durable. It asks the members that `local` knows, then
/// `seeds`. A node that is a member already is told again what it was told when it became one, after which the others reach it where `about` says.
///
/// # Errors
///
/// As [`form`]'s.
pub(super) async fn join(
    data: DataDirectory,
    local: &Local,
    seeds: &[Endpoint],
    about: &About,
) -> Result<(DataDirectory, Joined), Error> {
    let joined = peers::join(local, seeds, about).await;
    let joined = joined.map_err(|refusal| Error::Foreign(refusal.message))?;
    let data = make_durable(data, &joined.formed).await?;
    local.set_formed(joined.formed.clone());
    local.set_addresses(joined.addresses.clone());
    Ok((data, joined))
}

/// Where `kvstore.cluster.join` says that members are.
///
/// # Errors
///
/// When an address in the configuration is none.
pub(super) fn seeds(config: &Config) -> Result<Vec<Endpoint>, Error> {
    let join = &config.cluster.join;
    join.iter().map(|address| endpoint("kvstore.cluster.join", address)).collect()
}

/// What this node tells others of itself; its gRPC port is `port`.
pub(super) fn about(config: &Config, port: u16) -> About {
    let node = &config.node;
    About { address: node.address(port), weight: node.weight, zone: node.zone.clone() }
}

fn endpoint(key: &str, address: &str) -> Result<Endpoint, Error> {
    let unfit = |why| Error::Unsupported(format!("{key}: {address}: {why}"));
    address.parse().map_err(unfit)
}

async fn make_durable(mut data: DataDirectory, formed: &Formed) -> Result<DataDirectory, Error> {
    let formed = formed.clone();
    tokio::task::spawn_blocking(move || data.set_formed(&RealFileSystem, formed).map(|()| data))
        .await
        .unwrap_or_else(|error| Err(Error::Storage(error.to_string())))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::TcpListener;
    use std::time::Duration;

    use futures::future::BoxFuture;
    use parking_lot::Mutex;
    use tokio::runtime::Runtime;
    use tokio::sync::watch;
    use tokio::task::JoinHandle;
    use tokio_stream::wrappers::TcpListenerStream;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::cluster::{Incarnation, Standing};
    use crate::config::Member;
    use crate::raft::peers::{Admits, Admitted, Candidate, PeerService, Reason, Refusal};

    const NAMES: [&str; 3] = ["n1", "n2", "n3"];

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Data directories and ports of three nodes.
    struct World {
        directories: Vec<tempfile::TempDir>,
        members: Vec<Member>,
        /// How many of them found the cluster; the others join it.
        founders: usize,
        list: Arc<List>,
    }

    /// The list of members, as if it were replicated.
    struct List {
        members: Mutex<BTreeMap<NodeName, (Incarnation, String)>>,
        /// How many have been put on it.
        asked: watch::Sender<usize>,
        /// Whether they are told so.
        answers: watch::Sender<bool>,
    }

    impl Admits for List {
        fn admit(&self, candidate: Candidate) -> BoxFuture<'static, Result<Admitted, Refusal>> {
            let Candidate { node, incarnation, address, .. } = candidate;
            let mut members = self.members.lock();
            let entry = members.entry(node.clone()).or_insert((incarnation, address));
            if entry.0 != incarnation {
                let refusal = Refusal::new(Reason::NotAdmitted, format!("{node} has been here"));
                return Box::pin(std::future::ready(Err(refusal)));
            }
            let admitted = Admitted { revision: 1, members: members.clone(), meta_replica: 9 };
            self.asked.send_modify(|asked| *asked += 1);
            let mut answers = self.answers.subscribe();
            Box::pin(async move {
                answers.wait_for(|answers| *answers).await.expect("the list lives");
                Ok(admitted)
            })
        }
    }

    /// What a node was told: its cluster, and its replica when it joined.
    type Told = (Formed, Option<u64>);

    /// A node of it that runs.
    struct Running {
        runtime: Option<Runtime>,
        outcome: JoinHandle<Result<Told, String>>,
    }

    impl World {
        /// `founders` of the nodes found the cluster.
        fn new(founders: usize) -> Self {
            let listeners: Vec<_> =
                NAMES.iter().map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
            let members = NAMES.iter().zip(&listeners).map(|(name, listener)| Member {
                node: (*name).to_owned(),
                address: listener.local_addr().expect("it is bound").to_string(),
            });
            Self {
                members: members.collect(),
                directories: NAMES
                    .iter()
                    .map(|_| tempfile::tempdir().expect("a directory"))
                    .collect(),
                founders,
                list: Arc::new(List {
                    members: Mutex::default(),
                    asked: watch::Sender::new(0),
                    answers: watch::Sender::new(true),
                }),
            }
        }

        fn config(&self, index: usize) -> Config {
            let mut config = Config::default();
            NAMES[index].clone_into(&mut config.node.id);
            self.directories[index].path().clone_into(&mut config.storage.data_dir);
            let founders = &self.members[..self.founders];
            if index < self.founders {
                config.cluster.members = founders.to_vec();
            } else {
                config.cluster.join = founders.iter().map(|it| it.address.clone()).collect();
            }
            config.cluster.secret = "s3cret".to_owned();
            config
        }

        /// Starts a node as the server does: directory, port, cluster.
        fn start(&self, index: usize) -> Running {
            let config = self.config(index);
            let data = DataDirectory::open(&RealFileSystem, &config).expect("its own directory");
            let local = local(&data.identity, &config).expect("addresses").expect("a member");
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("a runtime");
            let address = self.members[index].address.clone();
            let listener = retry(|| TcpListener::bind(&address));
            listener.set_nonblocking(true).expect("a socket");
            let list = Arc::clone(&self.list) as Arc<dyn Admits>;
            let outcome = runtime.spawn(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let port = listener.local_addr().expect("it is bound").port();
                let service = PeerService::new(
                    Arc::clone(&local),
                    Arc::new(RealFileSystem),
                    None,
                    CancellationToken::new(),
                );
                service.admit_with(list);
                let serving = tonic::transport::Server::builder()
                    .add_service(service.into_server())
                    .serve_with_incoming(TcpListenerStream::new(listener));
                tokio::spawn(serving);
                let (data, told) = settle(data, &local, &config, port).await?;
                // The directory is held for as long as the node runs.
                tokio::spawn(async move {
                    let _data = data;
                    std::future::pending::<()>().await;
                });
                Ok(told)
            });
            Running { runtime: Some(runtime), outcome }
        }

        fn wipe(&self, index: usize) {
            for name in ["identity.json", "LOCK"] {
                std::fs::remove_file(self.directories[index].path().join(name))
                    .expect("it is there");
            }
        }

        /// Starts the founders, which put themselves on the list; their cluster.
        async fn found(&self) -> (Vec<Running>, Formed) {
            let mut nodes: Vec<_> = (0..self.founders).map(|index| self.start(index)).collect();
            let mut formed = None;
            for node in &mut nodes {
                formed = Some(node.formed().await.expect("a cluster"));
            }
            let formed = formed.expect("some found it");
            let known = formed.members.iter().zip(&self.members);
            let known = known.map(|((name, it), at)| (name.clone(), (*it, at.address.clone())));
            self.list.members.lock().extend(known);
            (nodes, formed)
        }
    }

    /// Founds the cluster or joins it, as the configuration says.
    async fn settle(
        data: DataDirectory,
        local: &Local,
        config: &Config,
        port: u16,
    ) -> Result<(DataDirectory, Told), String> {
        let shown = |error: Error| error.to_string();
        if config.cluster.join.is_empty() {
            let (data, formed) = form(data, local).await.map_err(shown)?;
            return Ok((data, (formed, None)));
        }
        let seeds = seeds(config).map_err(shown)?;
        let (data, joined) =
            join(data, local, &seeds, &about(config, port)).await.map_err(shown)?;
        assert_eq!(local.standing(), Standing::Formed(joined.formed.clone()));
        assert_eq!(*local.addresses(), joined.addresses);
        Ok((data, (joined.formed, Some(joined.meta_replica))))
    }

    fn retry<T>(mut work: impl FnMut() -> std::io::Result<T>) -> T {
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            match work() {
                Ok(done) => return done,
                Err(error) if std::time::Instant::now() > until => panic!("{error}"),
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    impl Running {
        async fn told(&mut self) -> Result<Told, String> {
            let outcome = tokio::time::timeout(PATIENCE, &mut self.outcome).await;
            outcome.expect("in time").expect("it runs")
        }

        async fn formed(&mut self) -> Result<Formed, String> {
            self.told().await.map(|told| told.0)
        }

        fn kill(mut self) {
            let runtime = self.runtime.take().expect("it runs");
            let ended = std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE));
            ended.join().expect("a runtime ends");
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            if let Some(runtime) = self.runtime.take() {
                runtime.shutdown_background();
            }
        }
    }

    #[tokio::test]
    async fn a_cluster_is_formed_once_and_stays_over_restarts() {
        let world = World::new(3);
        // A node that is killed while it waits comes back as the same one.
        let waits = world.start(2);
        assert!(!waits.outcome.is_finished());
        waits.kill();
        let mut nodes: Vec<Running> = [2, 0, 1].map(|index| world.start(index)).into();
        let first = nodes[0].formed().await.expect("a cluster");
        for node in &mut nodes[1..] {
            assert_eq!(node.formed().await.expect("the same cluster"), first);
        }
        nodes.into_iter().for_each(Running::kill);
        // From now on none needs the others to know what it belongs to.
        let mut alone = world.start(1);
        assert_eq!(alone.formed().await.expect("it is on its disk"), first);
    }

    #[tokio::test]
    async fn a_node_that_was_wiped_ends_with_what_to_do_and_stays_refused() {
        let world = World::new(3);
        let mut nodes: Vec<Running> = [0, 1, 2].map(|index| world.start(index)).into();
        for node in &mut nodes {
            node.formed().await.expect("a cluster");
        }
        nodes.pop().expect("three nodes").kill();
        world.wipe(2);
        for _ in 0..2 {
            let mut wiped = world.start(2);
            let refusal = wiped.formed().await.expect_err("it is not the n3 that they know");
            assert!(
                refusal.starts_with("node n3 presents incarnation ")
                    && refusal.ends_with(": its data directory was wiped or replaced; remove it and add it under a new name"),
                "{refusal}"
            );
            wiped.kill();
        }
    }

    #[tokio::test]
    async fn a_node_joins_once_and_is_a_member_from_then_on() {
        let world = World::new(2);
        let (mut nodes, founded) = world.found().await;
        let mut third = world.start(2);
        let joined = third.told().await.expect("it is let in");
        let (formed, replica) = &joined;
        assert_eq!((formed.cluster, formed.revision), (founded.cluster, 1));
        assert_eq!((formed.members.len(), *replica), (3, Some(9)));
        assert_eq!(world.list.members.lock()[&"n3".into()].1, world.members[2].address);
        third.kill();
        // What it was told it may ask for again, of any member.
        nodes.remove(0).kill();
        let mut third = world.start(2);
        assert_eq!(third.told().await.expect("it is a member"), joined);
        third.kill();
        // It needs nobody to know what it belongs to, and any list of members will do.
        nodes.into_iter().for_each(Running::kill);
        let mut config = world.config(2);
        config.cluster.join = vec!["127.0.0.1:9".to_owned()];
        let data = DataDirectory::open(&RealFileSystem, &config).expect("its own directory");
        let local = local(&data.identity, &config).expect("addresses").expect("a member");
        let (_data, formed) = form(data, &local).await.expect("it is on its disk");
        assert_eq!(formed, joined.0);
    }

    #[tokio::test]
    async fn a_node_that_ends_before_it_noted_that_it_was_let_in_joins_as_the_same_one() {
        let world = World::new(2);
        let (_nodes, _) = world.found().await;
        world.list.answers.send_replace(false);
        let third = world.start(2);
        let mut asked = world.list.asked.subscribe();
        let asked = tokio::time::timeout(PATIENCE, asked.wait_for(|asked| *asked > 0));
        drop(asked.await.expect("in time").expect("the list lives"));
        third.kill();
        let known = world.list.members.lock().clone();
        assert_eq!(known.len(), 3);
        world.list.answers.send_replace(true);
        let mut third = world.start(2);
        let (formed, _) = third.told().await.expect("it is let in");
        assert_eq!(*world.list.members.lock(), known);
        assert_eq!(formed.members[&"n3".into()], known[&"n3".into()].0);
        // As another one it is refused, and ends with what the list says.
        third.kill();
        world.wipe(2);
        let mut wiped = world.start(2);
        assert_eq!(wiped.told().await.expect_err("another one"), "n3 has been here");
    }

    #[tokio::test]
    async fn nobody_is_told_what_is_not_durable() {
        let world = World::new(2);
        let (_nodes, _) = world.found().await;
        let config = world.config(2);
        let data = DataDirectory::open(&RealFileSystem, &config).expect("its own directory");
        let local = local(&data.identity, &config).expect("addresses").expect("a member");
        // The disk goes away.
        std::fs::remove_dir_all(&config.storage.data_dir).expect("it is there");
        let seeds = seeds(&config).expect("addresses");
        let failed = join(data, &local, &seeds, &about(&config, 9)).await;
        let failed = failed.map(|_| ()).expect_err("nothing can be written");
        assert!(matches!(failed, Error::File { .. }), "{failed}");
        assert_eq!(local.standing(), Standing::Joining);
    }
}
