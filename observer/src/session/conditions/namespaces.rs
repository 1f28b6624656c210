//! The network namespaces in which the target's processes are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::host::Owners;
use crate::host::network::{held_by, namespaces_of};
use crate::host::tcp_sockets::{TcpSocket, TcpSockets};
use crate::model::Tgid;
use crate::target::Membership;

/// A process may enter another namespace, which is looked for after this time.
const SEARCH_INTERVAL: Duration = Duration::from_secs(10);
/// Listening sockets may be handed over, so that it is checked again after this time whose they are.
const OWNERS_INTERVAL: Duration = Duration::from_secs(60);
/// Namespaces that are watched.
pub(super) const NAMESPACES_MAX: usize = 16;

/// The namespaces, each with what is kept about it. One whose processes are gone stays.
pub(super) struct Namespaces<T> {
    all: BTreeMap<PathBuf, (Namespace, T)>,
    /// Namespaces for which there was no room.
    pub(super) beyond: u64,
    members: BTreeSet<Tgid>,
    next_search: Instant,
    owners: Owners,
}

/// One network namespace.
pub(super) struct Namespace {
    /// As in [`crate::model::Owner::network`].
    pub(super) name: String,
    /// The target's processes in it.
    pub(super) members: Vec<Tgid>,
    pub(super) sockets: TcpSockets,
    listening: Listening,
}

/// The listening sockets, and which of them are the target's.
#[derive(Default)]
struct Listening {
    /// By inode: whether a process of the target has it.
    known: BTreeMap<u64, bool>,
    checked: Option<Instant>,
}

impl<T> Namespaces<T> {
    pub(super) fn new() -> Self {
        Self {
            all: BTreeMap::new(),
            beyond: 0,
            members: BTreeSet::new(),
            next_search: Instant::now(),
            owners: Owners::read(),
        }
    }

    /// Looks for namespaces where the processes of the target are others, or some time has passed.
    /// `new` begins what is kept about one that is found.
    pub(super) fn search(&mut self, membership: &Membership, new: impl Fn(&Namespace) -> T) {
        let members = membership.tgids();
        let now = Instant::now();
        if members == self.members && now < self.next_search {
            return;
        }
        let mut found = namespaces_of(&members);
        for (path, (namespace, _)) in &mut self.all {
            namespace.members = found.remove(path).unwrap_or_default();
        }
        let room = NAMESPACES_MAX.saturating_sub(self.all.len());
        self.beyond = self.beyond.max(found.len().saturating_sub(room) as u64);
        for (path, members) in found.into_iter().take(room) {
            let namespace = Namespace::new(&path, members, self.owners.network_name(&path));
            let kept = new(&namespace);
            self.all.insert(path, (namespace, kept));
        }
        self.members = members;
        self.next_search = now + SEARCH_INTERVAL;
    }

    /// Each of them, with the processes of the target.
    pub(super) fn each(&mut self, mut read: impl FnMut(&mut Namespace, &mut T, &BTreeSet<Tgid>)) {
        for (namespace, kept) in self.all.values_mut() {
            read(namespace, kept, &self.members);
        }
    }

    /// What is kept about each of them.
    pub(super) fn kept(&self) -> impl Iterator<Item = &T> {
        self.all.values().map(|(_, kept)| kept)
    }
}

impl Namespace {
    fn new(path: &Path, members: Vec<Tgid>, name: String) -> Self {
        let sockets = TcpSockets::of(&members, path);
        Self { name, members, sockets, listening: Listening::default() }
    }

    /// The listening sockets, each with whether it is one of the target's; `None` when they could not be
    /// read.
    pub(super) fn listeners(&mut self, target: &BTreeSet<Tgid>) -> Option<Vec<(TcpSocket, bool)>> {
        let mut found = Vec::new();
        if !self.sockets.listeners(&self.members, |socket| found.push(*socket)) {
            return None;
        }
        let inodes = found.iter().map(|socket| socket.inode).collect();
        self.listening.find_owners(inodes, target);
        let is_own = |socket: &TcpSocket| self.listening.known.get(&socket.inode) == Some(&true);
        Some(found.into_iter().map(|socket| (socket, is_own(&socket))).collect())
    }
}

impl Listening {
    /// Finds out whose the sockets are where one of them is new, or some time has passed: that shows only
    /// in the descriptors of all processes.
    fn find_owners(&mut self, inodes: BTreeSet<u64>, target: &BTreeSet<Tgid>) {
        let is_due = self.checked.is_none_or(|checked| checked.elapsed() >= OWNERS_INTERVAL);
        if !is_due && inodes.iter().all(|inode| self.known.contains_key(inode)) {
            return;
        }
        let held = held_by(target, &inodes);
        self.known = inodes.into_iter().map(|inode| (inode, held.contains(&inode))).collect();
        self.checked = Some(Instant::now());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::process::{Child, Command};

    use super::*;
    use crate::target::TargetSpec;

    /// A process that does nothing but hold a listening socket, as a target.
    pub(crate) struct Holder {
        child: Child,
        pub(crate) membership: Membership,
    }

    impl Holder {
        pub(crate) fn of(listener: &TcpListener) -> Self {
            let socket = OwnedFd::from(listener.try_clone().unwrap());
            let child = Command::new("sleep").arg("600").stdin(socket).spawn().unwrap();
            let target = TargetSpec::Pids([Tgid(child.id())].into());
            Self { child, membership: Membership::new(&target).unwrap() }
        }

        /// Ends the process; the membership that is left has nobody.
        pub(crate) fn end(self) -> Membership {
            let target = TargetSpec::Pids([Tgid(self.child.id())].into());
            drop(self);
            Membership::nobody(&target)
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn the_namespace_of_the_target_is_found_once_and_stays() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Holder::of(&listener);
        let mut namespaces = Namespaces::new();
        namespaces.search(&target.membership, |_| 0);
        namespaces.search(&target.membership, |_| panic!("it is known"));
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        namespaces.each(|namespace, count, members| {
            *count += namespace.members.len();
            let found = namespace.listeners(members).unwrap();
            let is_own = |port| found.iter().find(|(socket, _)| socket.local.port() == port);
            assert!(is_own(port(&listener)).unwrap().1 && !is_own(port(&other)).unwrap().1);
        });
        assert_eq!(namespaces.kept().collect::<Vec<_>>(), [&1]);
        namespaces.search(&target.end(), |_| panic!("nobody is left"));
        namespaces.each(|namespace, _, _| assert!(namespace.members.is_empty()));
        assert_eq!((namespaces.kept().count(), namespaces.beyond), (1, 0));
    }
}
