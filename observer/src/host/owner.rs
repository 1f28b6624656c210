//! Whose a process is: its user, and the network that it is in.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::network::namespace;
use super::process;
use crate::model::{Owner, Tgid};

/// The parent of the kernel's threads, in the initial namespaces for ever.
const KTHREADD: Tgid = Tgid(2);

/// What the owners of processes are called on this host.
#[derive(Debug)]
pub struct Owners {
    users: BTreeMap<u32, String>,
    /// The namespace of the kernel's own threads. (The first process may be out of reach.)
    host_network: Option<PathBuf>,
}

/// Users of `/etc/passwd` by id; of two names for one id the first.
fn users(passwd: &str) -> BTreeMap<u32, String> {
    let mut users = BTreeMap::new();
    for line in passwd.lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(Ok(uid))) = (fields.next(), fields.nth(1).map(str::parse)) else {
            continue;
        };
        users.entry(uid).or_insert_with(|| name.to_owned());
    }
    users
}

impl Owners {
    /// Reads the names of the users, once.
    #[must_use]
    pub fn read() -> Self {
        let passwd = fs::read("/etc/passwd").unwrap_or_default();
        Self {
            users: users(&String::from_utf8_lossy(&passwd)),
            host_network: [KTHREADD, Tgid(1)].into_iter().find_map(namespace),
        }
    }

    /// Whose a process is; `None` when it is gone.
    #[must_use]
    pub fn of(&self, tgid: Tgid) -> Option<Owner> {
        let uid = process::status(tgid)?.euid;
        let user = self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string());
        let network = namespace(tgid);
        let network = network.map_or_else(|| "unknown".into(), |known| self.network_name(&known));
        Some(Owner { user, network })
    }

    /// What a network namespace is called: [`Owner::HOST`], or as the kernel calls it.
    #[must_use]
    pub fn network_name(&self, namespace: &Path) -> String {
        if self.host_network.as_deref() == Some(namespace) {
            return Owner::HOST.to_owned();
        }
        namespace.to_string_lossy().into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_the_first_name_for_their_id() {
        let found = users("root:x:0:0::/root:/bin/sh\ntoor:x:0:0:::\nbad\nx:y:z\nweb:x:33:33:::\n");
        assert_eq!(found, BTreeMap::from([(0, "root".into()), (33, "web".into())]));
    }

    #[test]
    fn this_process_has_an_owner_and_one_that_is_gone_has_none() {
        let owner = Owners::read().of(Tgid(std::process::id())).unwrap();
        assert!(!owner.user.is_empty() && owner.network != "unknown", "{owner:?}");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(Owners::read().of(Tgid(child.id())), None);
    }
}
