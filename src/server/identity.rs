//! Whose data directory it is: written when the directory is first used, checked at every start.
//!
//! What was decided when the data was written cannot be changed by configuration: the engine that can read it, the number of shards that its keys
//! were spread over, and whose it is: that of a node by itself, or of a member of one cluster. A start that asks for something else is refused and changes
//! nothing. Addresses are no part of it: they may change with every start.
//!
//! A member's directory is *forming* from its first use until its cluster is formed (`raft/peers/form`), or *joining* until a cluster has taken it in (`raft/peers/join`), and
//! *formed* for good from then on. A directory that was wiped and filled again has another incarnation, by which its cluster knows it.
//!
//! Members come and go: `kvstore.cluster.members` and `kvstore.cluster.join` of a formed directory only say where to find some of them. It is forming that needs the same list at
//! every start, because nobody else has it.
//!
//! While a node runs it holds the directory's lock, from before anything is written: a second process on it is refused.
//!
//! # On disk
//!
//! `identity.json` in the data directory, one JSON object, a line feed, the CRC-32C of the object's bytes in eight hexadecimal digits, a line feed. The object:
//!
//! | key | what |
//! |---|---|
//! | `magic`, `version` | `kvstore-data`, 3; version 1, which knows only nodes by themselves, and version 2, which knows only founders, are read as well |
//! | `incarnation`, `node`, `engine`, `shards` | of the directory, as when it was made |
//! | `cluster` | of a node by itself: its own; of a formed member: the cluster's; absent while it is forming or joining |
//! | `forming` | names of the members that are to form the cluster; only while it is forming |
//! | `joining` | `true`; only while it is joining |
//! | `members` | the cluster's members as this node last knew them, name to incarnation; only when it is formed |
//! | `revision` | which list of members that is; absent for that of the founders |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Error;
use crate::cluster::{Formed, Incarnation, NodeName, Standing, list};
use crate::config::Config;
use crate::util::fs::{DirLock, FileSystem, LOCK_FILE, read_file, replace_file};

const FILE: &str = "identity.json";
const FILE_BYTES_MAX: u64 = 256 << 10;
const MAGIC: &str = "kvstore-data";
const VERSION: u32 = 3;
/// Oldest version that is read.
const VERSION_MIN: u32 = 1;

/// What a data directory says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// Random; a directory that was wiped and filled again has another.
    pub(super) incarnation: Incarnation,
    /// The node that wrote it first.
    pub(super) node: String,
    pub(super) engine: String,
    pub(super) shards: u32,
    pub(super) place: Place,
}

/// Where its node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// By itself: the only node of this cluster.
    Alone(Uuid),
    /// A member, or about to become one.
    Member(Standing),
}

/// [`Identity`] on disk.
#[derive(Serialize, Deserialize)]
struct Record {
    magic: String,
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<Uuid>,
    incarnation: Incarnation,
    node: String,
    engine: String,
    shards: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forming: Option<BTreeSet<NodeName>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    joining: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    members: Option<BTreeMap<NodeName, Incarnation>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
}

impl Record {
    /// `None` when the parts do not fit together.
    fn into_identity(self) -> Option<Identity> {
        let place = match (self.cluster, self.forming, self.joining, self.members, self.revision) {
            (Some(cluster), None, false, None, None) => Place::Alone(cluster),
            (None, Some(names), false, None, None) => Place::Member(Standing::Forming(names)),
            (None, None, true, None, None) => Place::Member(Standing::Joining),
            (Some(cluster), None, false, Some(members), revision) => {
                let revision = revision.unwrap_or_default();
                Place::Member(Standing::Formed(Formed { cluster, revision, members }))
            }
            _ => return None,
        };
        let Self { incarnation, node, engine, shards, .. } = self;
        Some(Identity { incarnation, node, engine, shards, place })
    }

    fn of(identity: &Identity) -> Self {
        let Identity { incarnation, node, engine, shards, place } = identity.clone();
        let mut record = Self {
            magic: MAGIC.to_owned(),
            version: VERSION,
            cluster: None,
            incarnation,
            node,
            engine,
            shards,
            forming: None,
            joining: false,
            members: None,
            revision: None,
        };
        match place {
            Place::Alone(cluster) => record.cluster = Some(cluster),
            Place::Member(Standing::Forming(names)) => record.forming = Some(names),
            Place::Member(Standing::Joining) => record.joining = true,
            Place::Member(Standing::Formed(Formed { cluster, revision, members })) => {
                record.cluster = Some(cluster);
                record.members = Some(members);
                record.revision = (revision > 0).then_some(revision);
            }
        }
        record
    }
}

/// A data directory that this process holds.
pub(super) struct DataDirectory {
    pub(super) identity: Identity,
    path: PathBuf,
    _lock: DirLock,
}

impl DataDirectory {
    /// Opens the data directory of `config`, or makes it.
    ///
    /// # Errors
    ///
    /// [`Error::Foreign`], with what to do, when it belongs to something else than `config` says, or another process has it.
    pub(super) fn open(fs: &dyn FileSystem, config: &Config) -> Result<Self, Error> {
        let path = &config.storage.data_dir;
        fs.create_dir_all(path).map_err(|source| Error::file("create", path, source))?;
        // Before the lock: somebody else's directory stays as it is.
        if Identity::read(fs, path)?.is_none() {
            check_empty(fs, path)?;
        }
        let lock = fs.lock(path).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => Error::Foreign(format!(
                "{} is in use by another process; stop that one, or set another kvstore.storage.data-dir",
                path.display()
            )),
            _ => Error::file("lock", path, source),
        })?;
        let identity = match Identity::read(fs, path)? {
            Some(found) => {
                found.check(path, config)?;
                found
            }
            None => Identity::create(fs, path, config)?,
        };
        Ok(Self { identity, path: path.clone(), _lock: lock })
    }

    /// Makes durable which cluster the directory belongs to, and its members. Once it belongs to one it is for good; members may change at any time. Costs nothing when
    /// nothing has changed, else a small file that is replaced.
    pub(super) fn set_formed(&mut self, fs: &dyn FileSystem, formed: Formed) -> Result<(), Error> {
        let place = Place::Member(Standing::Formed(formed));
        if place == self.identity.place {
            return Ok(());
        }
        let identity = Identity { place, ..self.identity.clone() };
        identity.write(fs, &self.path)?;
        self.identity = identity;
        Ok(())
    }
}

impl Identity {
    /// Gives `directory` a fresh identity.
    pub(super) fn create(
        fs: &dyn FileSystem,
        directory: &Path,
        config: &Config,
    ) -> Result<Self, Error> {
        let place = if !config.cluster.join.is_empty() {
            Place::Member(Standing::Joining)
        } else if !config.cluster.members.is_empty() {
            Place::Member(Standing::Forming(member_names(config)))
        } else {
            Place::Alone(Uuid::new_v4())
        };
        let identity = Self {
            incarnation: Incarnation(Uuid::new_v4()),
            node: config.node.id.clone(),
            engine: config.storage.engine.as_str().to_owned(),
            shards: config.hash_ring.shards,
            place,
        };
        identity.write(fs, directory)?;
        Ok(identity)
    }

    /// Refuses a configuration that asks for something else than what is in `directory`.
    fn check(&self, directory: &Path, config: &Config) -> Result<(), Error> {
        let directory = directory.display();
        for (key, found, asked) in [
            ("kvstore.node.id", &self.node, &config.node.id),
            ("kvstore.storage.engine", &self.engine, &config.storage.engine.as_str().to_owned()),
            (
                "kvstore.hash-ring.shards",
                &self.shards.to_string(),
                &config.hash_ring.shards.to_string(),
            ),
        ] {
            if found != asked {
                return Err(Error::Foreign(format!(
                    "{directory} was written with {key}: {found}, the configuration says {asked}; set {key}: {found} or another kvstore.storage.data-dir"
                )));
            }
        }
        self.check_place(&directory, config)
    }

    /// Refuses a configuration that wants another place for the node of this directory than it has.
    fn check_place(&self, directory: &dyn fmt::Display, config: &Config) -> Result<(), Error> {
        let cluster = &config.cluster;
        let refuse =
            |is: &str, todo: &str| Err(Error::Foreign(format!("{directory} {is}; {todo}")));
        let nothing_yet = "or empty the directory: nothing is stored in it yet";
        match &self.place {
            Place::Alone(_) if cluster.is_set() => {
                let key = if cluster.join.is_empty() {
                    "kvstore.cluster.members"
                } else {
                    "kvstore.cluster.join"
                };
                refuse(
                    &format!(
                        "holds the data of a node by itself, which {key} cannot make part of a cluster"
                    ),
                    &format!("unset {key}, or set another kvstore.storage.data-dir"),
                )
            }
            Place::Member(Standing::Forming(names)) if *names != member_names(config) => refuse(
                &format!(
                    "began to form a cluster of {}, kvstore.cluster.members says {}",
                    list(names),
                    said(&member_names(config))
                ),
                &format!("name the former again, {nothing_yet}"),
            ),
            Place::Member(Standing::Joining) if cluster.join.is_empty() => refuse(
                "is that of a node which is about to join a cluster, kvstore.cluster.join says nothing",
                &format!("set kvstore.cluster.join to addresses of its members, {nothing_yet}"),
            ),
            // What else depends on these keys holds for a member as well.
            Place::Member(Standing::Formed(formed)) if !cluster.is_set() => refuse(
                &format!(
                    "belongs to a cluster of {}, the configuration names none of them",
                    list(formed.members.keys())
                ),
                "set kvstore.cluster.join to addresses of some, or set another kvstore.storage.data-dir",
            ),
            _ => Ok(()),
        }
    }

    fn read(fs: &dyn FileSystem, directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(FILE);
        let content = match read_file(fs, &path, FILE_BYTES_MAX) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::file("read", &path, source)),
        };
        let damaged = |detail: &str| {
            Error::Foreign(format!(
                "{} is damaged: {detail}; restore it from a backup",
                path.display()
            ))
        };
        let text = content.strip_suffix(b"\n").and_then(|text| text.split_last_chunk::<9>());
        let Some((json, checksum)) = text else { return Err(damaged("it is cut off")) };
        if checksum[..] != *format!("\n{:08x}", crc32c::crc32c(json)).as_bytes() {
            return Err(damaged("its checksum does not match"));
        }
        let record: Record =
            serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))?;
        if record.magic != MAGIC || !(VERSION_MIN..=VERSION).contains(&record.version) {
            let (path, version) = (path.display(), record.version);
            return Err(Error::Foreign(format!(
                "{path} has version {version}; this program reads versions {VERSION_MIN} to {VERSION}"
            )));
        }
        let identity = record.into_identity();
        identity.map(Some).ok_or_else(|| damaged("its parts do not fit together"))
    }

    fn write(&self, fs: &dyn FileSystem, directory: &Path) -> Result<(), Error> {
        let failed = |source| Error::file("write", &directory.join(FILE), source);
        let mut text =
            serde_json::to_vec(&Record::of(self)).map_err(|error| failed(error.into()))?;
        let checksum = crc32c::crc32c(&text);
        text.extend_from_slice(format!("\n{checksum:08x}\n").as_bytes());
        replace_file(fs, directory, FILE, &text).map_err(failed)
    }
}

/// The names in `kvstore.cluster.members`; none for a node by itself.
fn member_names(config: &Config) -> BTreeSet<NodeName> {
    config.cluster.members.iter().map(|member| NodeName(member.node.clone())).collect()
}

fn said(names: &BTreeSet<NodeName>) -> String {
    if names.is_empty() { "nothing".to_owned() } else { list(names) }
}

/// Refuses a directory that holds something but no identity: another program's files, or a restore that was cut off.
fn check_empty(fs: &dyn FileSystem, directory: &Path) -> Result<(), Error> {
    let names = fs.list(directory).map_err(|source| Error::file("list", directory, source))?;
    let temporary = format!("{FILE}.tmp");
    let expected = [temporary.as_str(), LOCK_FILE, "lost+found"];
    match names.iter().find(|name| !expected.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(Error::Foreign(format!(
            "{} holds {name:?} but no {FILE}: it is not a data directory, or a restore into it was cut off; empty it or set another kvstore.storage.data-dir",
            directory.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Engine, Member};
    use crate::util::fs::RealFileSystem;

    /// A configuration of node n1 in a directory that goes with the test.
    struct World {
        directory: tempfile::TempDir,
        config: Config,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let mut config = Config::default();
            config.node.id = "n1".to_owned();
            config.storage.engine = Engine::Sled;
            config.storage.data_dir = directory.path().to_owned();
            Self { directory, config }
        }

        fn members(mut self, names: &[&str]) -> Self {
            self.config.cluster.members = names
                .iter()
                .map(|name| Member { node: (*name).to_owned(), address: format!("{name}:9090") })
                .collect();
            self
        }

        /// The same directory under another configuration.
        fn but(&self, change: impl FnOnce(&mut Config)) -> Result<Identity, String> {
            let mut config = self.config.clone();
            change(&mut config);
            let opened = DataDirectory::open(&RealFileSystem, &config);
            opened.map(|data| data.identity).map_err(|error| error.to_string())
        }

        fn open(&self) -> Result<Identity, String> {
            self.but(|_| {})
        }

        /// What is said when it is refused, without the directory's name.
        fn refusal(&self, change: impl FnOnce(&mut Config)) -> String {
            let refusal = self.but(change).expect_err("it asks for something else");
            let directory = self.directory.path().display().to_string();
            refusal.strip_prefix(&directory).expect("it names the directory").to_owned()
        }
    }

    /// Another configuration, of a node that joins.
    fn join(config: &mut Config) {
        config.cluster.members.clear();
        config.cluster.join = vec!["n2:9090".to_owned()];
    }

    fn formed(names: &[&str]) -> Formed {
        let members =
            names.iter().map(|name| (NodeName::from(*name), Incarnation(Uuid::new_v4()))).collect();
        Formed::new(members, 16)
    }

    #[test]
    fn a_directory_keeps_its_identity_and_refuses_another_configuration() {
        let world = World::new();
        let first = world.open().expect("a fresh directory");
        assert!(matches!(first.place, Place::Alone(_)));
        assert_eq!(world.open().expect("the same again"), first);
        let end = "or another kvstore.storage.data-dir";
        assert_eq!(
            world.refusal(|config| config.node.id = "n2".to_owned()),
            format!(
                " was written with kvstore.node.id: n1, the configuration says n2; set kvstore.node.id: n1 {end}"
            )
        );
        assert_eq!(
            world.refusal(|config| config.hash_ring.shards = 8),
            format!(
                " was written with kvstore.hash-ring.shards: 16, the configuration says 8; set kvstore.hash-ring.shards: 16 {end}"
            )
        );
        assert_eq!(
            world.refusal(|config| config.storage.engine = Engine::Lsm),
            format!(
                " was written with kvstore.storage.engine: sled, the configuration says lsm; set kvstore.storage.engine: sled {end}"
            )
        );
    }

    #[test]
    fn a_node_by_itself_does_not_become_a_member_nor_the_other_way_round() {
        let alone = World::new();
        alone.open().expect("a fresh directory");
        let alone = alone.members(&["n1", "n2", "n3"]);
        assert_eq!(
            alone.refusal(|_| {}),
            " holds the data of a node by itself, which kvstore.cluster.members cannot make part of a cluster; unset kvstore.cluster.members, or set another kvstore.storage.data-dir"
        );
        assert_eq!(
            alone.refusal(join),
            " holds the data of a node by itself, which kvstore.cluster.join cannot make part of a cluster; unset kvstore.cluster.join, or set another kvstore.storage.data-dir"
        );

        let member = World::new().members(&["n1", "n2", "n3"]);
        member.open().expect("a fresh directory");
        assert_eq!(
            member.refusal(|config| config.cluster.members.clear()),
            " began to form a cluster of n1, n2 and n3, kvstore.cluster.members says nothing; name the former again, or empty the directory: nothing is stored in it yet"
        );
        let mut data = DataDirectory::open(&RealFileSystem, &member.config).expect("the same");
        let cluster = formed(&["n1", "n2", "n3"]);
        data.set_formed(&RealFileSystem, cluster).expect("a writable directory");
        drop(data);
        // The rest of the configuration is checked as a member's only when it names some.
        assert_eq!(
            member.refusal(|config| config.cluster.members.clear()),
            " belongs to a cluster of n1, n2 and n3, the configuration names none of them; set kvstore.cluster.join to addresses of some, or set another kvstore.storage.data-dir"
        );
    }

    #[test]
    fn a_member_keeps_its_incarnation_and_its_cluster_and_may_move() {
        let world = World::new().members(&["n3", "n1", "n2"]);
        let fresh = world.open().expect("a fresh directory");
        let names = ["n1", "n2", "n3"].into_iter().map(NodeName::from).collect();
        assert_eq!(fresh.place, Place::Member(Standing::Forming(names)));
        assert_eq!(world.open().expect("the same again"), fresh);
        assert_eq!(
            world.refusal(|config| config.cluster.members.truncate(2)),
            " began to form a cluster of n1, n2 and n3, kvstore.cluster.members says n1 and n3; name the former again, or empty the directory: nothing is stored in it yet"
        );

        let mut data = DataDirectory::open(&RealFileSystem, &world.config).expect("the same");
        let cluster = formed(&["n1", "n2", "n3"]);
        data.set_formed(&RealFileSystem, cluster.clone()).expect("a writable directory");
        let expected = Identity { place: Place::Member(Standing::Formed(cluster)), ..fresh };
        assert_eq!(data.identity, expected);
        drop(data);
        assert_eq!(world.open().expect("the same again"), expected);
        let moved =
            world.but(|config| config.cluster.members[0].address = "elsewhere:1".to_owned());
        assert_eq!(moved.expect("addresses may change"), expected);
    }

    #[test]
    fn members_come_and_go_after_a_cluster_is_formed() {
        let world = World::new().members(&["n1", "n2", "n3"]);
        let mut data = DataDirectory::open(&RealFileSystem, &world.config).expect("fresh");
        let founders = formed(&["n1", "n2", "n3"]);
        data.set_formed(&RealFileSystem, founders.clone()).expect("a writable directory");
        let later = Formed { revision: 7, members: formed(&["n1", "n4"]).members, ..founders };
        data.set_formed(&RealFileSystem, later.clone()).expect("a writable directory");
        drop(data);
        let expected = Place::Member(Standing::Formed(later.clone()));
        // The configuration names some of them, or those that once were.
        assert_eq!(world.open().expect("the founders").place, expected);
        let other = world.but(|config| config.cluster.members[1].node = "n9".to_owned());
        assert_eq!(other.expect("whoever").place, expected);
        assert_eq!(world.but(join).expect("an address").place, expected);

        let mut data = DataDirectory::open(&RealFileSystem, &world.config).expect("the same");
        let file = world.directory.path().join(FILE);
        std::fs::remove_file(&file).expect("it is there");
        data.set_formed(&RealFileSystem, later).expect("nothing to do");
        assert!(!file.exists(), "what has not changed is not written");
    }

    #[test]
    fn a_directory_that_joins_does_so_until_it_belongs_to_a_cluster() {
        let world = World::new();
        let fresh = world.but(join).expect("a fresh directory");
        assert_eq!(fresh.place, Place::Member(Standing::Joining));
        assert_eq!(world.but(join).expect("the same again"), fresh);
        let elsewhere = world.but(|config| config.cluster.join = vec!["other:1".to_owned()]);
        assert_eq!(elsewhere.expect("any seed"), fresh);
        let refusal = " is that of a node which is about to join a cluster, kvstore.cluster.join says nothing; set kvstore.cluster.join to addresses of its members, or empty the directory: nothing is stored in it yet";
        assert_eq!(world.refusal(|_| {}), refusal);
        let world = world.members(&["n1", "n2"]);
        assert_eq!(world.refusal(|_| {}), refusal);

        let mut config = world.config.clone();
        join(&mut config);
        let mut data = DataDirectory::open(&RealFileSystem, &config).expect("the same");
        let cluster = Formed { revision: 3, ..formed(&["n1", "n2"]) };
        data.set_formed(&RealFileSystem, cluster.clone()).expect("a writable directory");
        drop(data);
        let place = Place::Member(Standing::Formed(cluster));
        assert_eq!(world.but(join).expect("the same again"), Identity { place, ..fresh });
    }

    #[test]
    fn a_second_process_on_a_directory_is_refused_and_leaves_it_as_it_is() {
        let world = World::new();
        let first = DataDirectory::open(&RealFileSystem, &world.config).expect("a fresh directory");
        assert_eq!(
            world.refusal(|_| {}),
            " is in use by another process; stop that one, or set another kvstore.storage.data-dir"
        );
        let identity = first.identity.clone();
        drop(first);
        assert_eq!(world.open().expect("it is free"), identity);
    }

    #[test]
    fn a_directory_of_something_else_is_refused_and_stays_as_it_is() {
        let world = World::new();
        let directory = world.directory.path();
        std::fs::write(directory.join("thesis.tex"), "x").expect("a writable directory");
        let refusal = world.refusal(|_| {});
        assert!(refusal.starts_with(" holds \"thesis.tex\" but no identity.json: "), "{refusal}");
        assert_eq!(RealFileSystem.list(directory).expect("it is there"), ["thesis.tex"]);
    }

    /// Writes the object `{"magic": ..., <parts>}` of `version` with its checksum.
    fn write(world: &World, version: u32, parts: &str) {
        let json = format!(
            r#"{{"magic":"kvstore-data","version":{version},{parts},"incarnation":"0a1b2c3d-0000-4000-8000-000000000001","node":"n1","engine":"sled","shards":16}}"#
        );
        let text = format!("{json}\n{:08x}\n", crc32c::crc32c(json.as_bytes()));
        std::fs::write(world.directory.path().join(FILE), text).expect("a writable directory");
    }

    #[test]
    fn directories_of_earlier_versions_are_taken_as_they_are() {
        let world = World::new();
        let cluster = "6fa3bc4e-4a3f-4a6e-9b57-0f1d2c3b4a59";
        write(&world, 1, &format!(r#""cluster":"{cluster}""#));
        let found = world.open().expect("it is read");
        assert_eq!(found.place, Place::Alone(cluster.parse().expect("an id")));
        assert_eq!(found.incarnation.to_string(), "0a1b2c3d-0000-4000-8000-000000000001");

        let world = world.members(&["n1", "n2"]);
        write(&world, 2, r#""forming":["n1","n2"]"#);
        let names = ["n1", "n2"].into_iter().map(NodeName::from).collect();
        let found = world.open().expect("it is read");
        assert_eq!(found.place, Place::Member(Standing::Forming(names)));

        let member = "0a1b2c3d-0000-4000-8000-000000000001";
        write(&world, 2, &format!(r#""cluster":"{cluster}","members":{{"n1":"{member}"}}"#));
        let found = world.open().expect("it is read");
        let formed = Formed {
            cluster: cluster.parse().expect("an id"),
            revision: 0,
            members: [("n1".into(), found.incarnation)].into(),
        };
        assert_eq!(found.place, Place::Member(Standing::Formed(formed)));

        write(&world, 4, r#""forming":["n1","n2"]"#);
        let expected = "/identity.json has version 4; this program reads versions 1 to 3";
        assert_eq!(world.refusal(|_| {}), expected);
    }

    #[test]
    fn an_identity_whose_parts_contradict_each_other_is_refused() {
        let world = World::new().members(&["n1", "n2"]);
        let cluster = r#""cluster":"6fa3bc4e-4a3f-4a6e-9b57-0f1d2c3b4a59""#;
        for parts in [
            r#""joining":false"#.to_owned(),
            r#""joining":true,"forming":["n1","n2"]"#.to_owned(),
            format!(r#""joining":true,{cluster}"#),
            format!(r#""joining":true,{cluster},"members":{{}}"#),
            format!(r#""revision":7,{cluster}"#),
            r#""revision":7,"forming":["n1","n2"]"#.to_owned(),
        ] {
            write(&world, 3, &parts);
            let refusal = world.refusal(|_| {});
            assert!(refusal.contains("its parts do not fit together"), "{parts}: {refusal}");
        }
    }

    #[test]
    fn a_damaged_identity_is_refused_wherever_it_is_damaged() {
        let world = World::new().members(&["n1", "n2"]);
        world.open().expect("a fresh directory");
        let path = world.directory.path().join(FILE);
        let whole = std::fs::read(&path).expect("it was written");
        // Cut to nothing it is still there, so that the directory does not pass for a fresh one.
        for position in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 1;
            std::fs::write(&path, &damaged).expect("a writable file");
            assert!(world.open().is_err(), "byte {position}");
            std::fs::write(&path, &whole[..position]).expect("a writable file");
            assert!(world.open().is_err(), "cut at {position}");
        }
    }
}
