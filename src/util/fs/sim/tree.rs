//! The simulated name space: directories and files as numbered nodes, live names beside durable ones.
//!
//! A change of names is a list of entry settings that survives as a whole or not at all (a rename sets two). Changes wait in
//! one ordered list until a `sync_dir` makes them durable. A power loss keeps, by the seed, either a prefix of that list (a
//! journaling file system such as ext4) or any subset of it (what POSIX allows).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};

use super::Random;
use super::image::FileImage;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(u64);

const ROOT: NodeId = NodeId(0);

type Entries = BTreeMap<String, NodeId>;

#[derive(Debug, Clone)]
enum Node {
    File { image: FileImage, handles: u64 },
    Dir { live: Entries, durable: Entries },
}

/// `dir/name` becomes `target`.
#[derive(Debug, Clone)]
struct Setting {
    dir: NodeId,
    name: String,
    target: Option<NodeId>,
}

/// What one call changed in directories.
#[derive(Debug, Clone)]
struct Change {
    settings: Vec<Setting>,
    /// A failed sync left it behind: no later sync makes it durable.
    forsaken: bool,
}

/// Where a name is: the directory and the last component.
#[derive(Debug, Clone)]
pub(super) struct Place {
    dir: NodeId,
    name: String,
}

#[derive(Debug, Clone)]
pub(super) struct Tree {
    nodes: BTreeMap<NodeId, Node>,
    next: u64,
    unsynced: Vec<Change>,
}

impl Tree {
    pub(super) fn new() -> Self {
        let root = Node::Dir { live: Entries::new(), durable: Entries::new() };
        Self { nodes: BTreeMap::from([(ROOT, root)]), next: 1, unsynced: Vec::new() }
    }

    /// The node a path names.
    pub(super) fn find(&self, path: &Path) -> io::Result<NodeId> {
        let mut node = ROOT;
        for name in components(path)? {
            node = *self.entries(node)?.get(&name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(node)
    }

    /// The place a path names, which may be free.
    pub(super) fn place(&self, path: &Path) -> io::Result<Place> {
        let name = components(path)?.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.find(path.parent().unwrap_or(Path::new("")))?;
        self.entries(dir)?;
        Ok(Place { dir, name })
    }

    pub(super) fn get(&self, place: &Place) -> Option<NodeId> {
        self.entries(place.dir).ok()?.get(&place.name).copied()
    }

    pub(super) fn names(&self, dir: NodeId) -> io::Result<Vec<String>> {
        Ok(self.entries(dir)?.keys().cloned().collect())
    }

    pub(super) fn is_dir(&self, node: NodeId) -> bool {
        matches!(self.nodes.get(&node), Some(Node::Dir { .. }))
    }

    pub(super) fn file(&self, node: NodeId) -> io::Result<&FileImage> {
        match self.nodes.get(&node) {
            Some(Node::File { image, .. }) => Ok(image),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    pub(super) fn file_mut(&mut self, node: NodeId) -> io::Result<&mut FileImage> {
        match self.nodes.get_mut(&node) {
            Some(Node::File { image, .. }) => Ok(image),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    pub(super) fn create_file(&mut self, place: Place) -> NodeId {
        self.add(place, Node::File { image: FileImage::default(), handles: 0 })
    }

    pub(super) fn create_dir(&mut self, place: Place) -> NodeId {
        self.add(place, Node::Dir { live: Entries::new(), durable: Entries::new() })
    }

    pub(super) fn link(&mut self, node: NodeId, to: Place) {
        self.change(vec![Setting { dir: to.dir, name: to.name, target: Some(node) }]);
    }

    pub(super) fn unlink(&mut self, place: Place) {
        self.change(vec![Setting { dir: place.dir, name: place.name, target: None }]);
    }

    pub(super) fn rename(&mut self, from: Place, to: Place) {
        let target = self.get(&from);
        self.change(vec![
            Setting { dir: from.dir, name: from.name, target: None },
            Setting { dir: to.dir, name: to.name, target },
        ]);
    }

    /// Counts open handles up (`true`) or down.
    pub(super) fn handle(&mut self, node: NodeId, opened: bool) {
        if let Some(Node::File { handles, .. }) = self.nodes.get_mut(&node) {
            *handles = if opened { *handles + 1 } else { handles.saturating_sub(1) };
        }
    }

    /// Makes the names in `dir` durable. A change over two directories takes along what was changed before it in the
    /// other, so that durable names are always ones that existed.
    pub(super) fn sync_dir(&mut self, dir: NodeId) -> io::Result<()> {
        self.entries(dir)?;
        for change in self.take_changes(dir) {
            self.apply(&change, |node| match node {
                Node::Dir { durable, .. } => Some(durable),
                Node::File { .. } => None,
            });
        }
        self.collect();
        Ok(())
    }

    /// A sync of `dir` failed: what it should have made durable stays in doubt.
    pub(super) fn fail_sync_dir(&mut self, dir: NodeId) {
        for change in &mut self.unsynced {
            if change.settings.iter().any(|setting| setting.dir == dir) {
                change.forsaken = true;
            }
        }
    }

    /// Sectors of disk space in use: files with a live name or an open handle.
    pub(super) fn sectors_used(&self) -> u64 {
        let mut named: BTreeSet<NodeId> = BTreeSet::new();
        for node in self.nodes.values() {
            if let Node::Dir { live, .. } = node {
                named.extend(live.values());
            }
        }
        let used = |(id, node): (&NodeId, &Node)| match node {
            Node::File { image, handles } if *handles > 0 || named.contains(id) => {
                image.sectors_used()
            }
            _ => 0,
        };
        self.nodes.iter().map(used).sum()
    }

    /// What a power loss leaves.
    pub(super) fn after_power_loss(&self, random: &mut Random) -> Self {
        let mut tree = self.clone();
        let prefix_only = random.below(2) == 0;
        let prefix = random.below(tree.unsynced.len() as u64 + 1);
        for (index, change) in (0u64..).zip(std::mem::take(&mut tree.unsynced)) {
            if if prefix_only { index < prefix } else { random.below(2) == 0 } {
                tree.apply(&change, |node| match node {
                    Node::Dir { durable, .. } => Some(durable),
                    Node::File { .. } => None,
                });
            }
        }
        for node in tree.nodes.values_mut() {
            match node {
                Node::Dir { live, durable } => live.clone_from(durable),
                Node::File { image, handles } => {
                    *image = image.after_power_loss(random);
                    *handles = 0;
                }
            }
        }
        tree.collect();
        tree
    }

    /// What the end of the process leaves: everything but its handles.
    pub(super) fn after_kill(&self) -> Self {
        let mut tree = self.clone();
        for node in tree.nodes.values_mut() {
            if let Node::File { handles, .. } = node {
                *handles = 0;
            }
        }
        tree
    }

    fn entries(&self, node: NodeId) -> io::Result<&Entries> {
        match self.nodes.get(&node) {
            Some(Node::Dir { live, .. }) => Ok(live),
            Some(Node::File { .. }) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn add(&mut self, place: Place, node: Node) -> NodeId {
        let id = NodeId(self.next);
        self.next += 1;
        self.nodes.insert(id, node);
        self.link(id, place);
        id
    }

    fn change(&mut self, settings: Vec<Setting>) {
        let change = Change { settings, forsaken: false };
        self.apply(&change, |node| match node {
            Node::Dir { live, .. } => Some(live),
            Node::File { .. } => None,
        });
        self.unsynced.push(change);
    }

    fn apply(&mut self, change: &Change, names: fn(&mut Node) -> Option<&mut Entries>) {
        for Setting { dir, name, target } in &change.settings {
            let Some(entries) = self.nodes.get_mut(dir).and_then(names) else { continue };
            match target {
                Some(node) => entries.insert(name.clone(), *node),
                None => entries.remove(name),
            };
        }
    }

    /// Removes from the list, in order, what a sync of `dir` makes durable.
    fn take_changes(&mut self, dir: NodeId) -> Vec<Change> {
        let mut dirs = BTreeSet::from([dir]);
        let mut taken = Vec::new();
        for index in (0..self.unsynced.len()).rev() {
            let change = &self.unsynced[index];
            let touches = change.settings.iter().any(|setting| dirs.contains(&setting.dir));
            if touches && !change.forsaken {
                dirs.extend(change.settings.iter().map(|setting| setting.dir));
                taken.push(self.unsynced.remove(index));
            }
        }
        taken.reverse();
        taken
    }

    /// Forgets nodes that nothing can reach any more.
    fn collect(&mut self) {
        let mut reachable = BTreeSet::from([ROOT]);
        for change in &self.unsynced {
            reachable.extend(change.settings.iter().filter_map(|setting| setting.target));
        }
        let mut queue: Vec<NodeId> = reachable.iter().copied().collect();
        while let Some(id) = queue.pop() {
            if let Some(Node::Dir { live, durable }) = self.nodes.get(&id) {
                let children = live.values().chain(durable.values());
                queue.extend(children.copied().filter(|&child| reachable.insert(child)));
            }
        }
        let open = |node: &Node| matches!(node, Node::File { handles, .. } if *handles > 0);
        self.nodes.retain(|id, node| reachable.contains(id) || open(node));
    }
}

/// The names along a path; relative paths start at the root.
fn components(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_string_lossy().into_owned()),
            Component::ParentDir => return Err(io::ErrorKind::InvalidInput.into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(names)
}
