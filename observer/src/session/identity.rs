//! The user that COMMAND runs as.

use std::ffi::OsString;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Exit, Result};

/// A user with its groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// As the user is called in messages.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Who COMMAND runs as: the user that was asked for, or under sudo the user who called it. `None`
/// when COMMAND stays with observer's own user.
///
/// # Errors
/// [`Exit::Usage`] when there is no such user.
pub fn identity(asked_for: Option<&str>) -> Result<Option<Identity>> {
    let own = rustix::process::geteuid();
    let found = match asked_for {
        Some(user) => Some(named(user)?),
        None if own.is_root() => sudo(|name| std::env::var_os(name)),
        None => None,
    };
    Ok(found.filter(|identity| identity.uid != own.as_raw()))
}

/// USER, UID, or UID:GID.
fn named(user: &str) -> Result<Identity> {
    let numbers = user.split_once(':').map(|(uid, gid)| (uid.parse().ok(), gid.parse().ok()));
    if let Some((Some(uid), Some(gid))) = numbers {
        return Ok(Identity { name: user.to_owned(), uid, gid, groups: vec![gid] });
    }
    let (uid, gid) = (ask("-u", user), ask("-g", user));
    match (uid.as_deref(), gid.as_deref(), ask("-G", user)) {
        (Some(&[uid]), Some(&[gid]), Some(groups)) => {
            Ok(Identity { name: user.to_owned(), uid, gid, groups })
        }
        _ => {
            let text = format!("there is no user {user:?} on this host (UID:GID needs no entry)");
            Err(Error::new(Exit::Usage, text))
        }
    }
}

/// What `id` says: it asks all sources of users that this host has, for which a program that is
/// linked statically has no libraries.
fn ask(what: &str, user: &str) -> Option<Vec<u32>> {
    let output = Command::new("id").args([what, "--", user]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    text.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
}

/// The user who called sudo, with that user's groups if the host knows them.
fn sudo(variable: impl Fn(&str) -> Option<OsString>) -> Option<Identity> {
    let text = |name| variable(name)?.into_string().ok();
    let (uid, gid) = (text("SUDO_UID")?.parse().ok()?, text("SUDO_GID")?.parse().ok()?);
    let name = text("SUDO_USER").unwrap_or_else(|| format!("{uid}:{gid}"));
    let known = named(&name).ok().filter(|known| known.uid == uid);
    let groups = known.map_or_else(|| vec![gid], |known| known.groups);
    Some(Identity { name, uid, gid, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_named_by_name_or_by_numbers() {
        let root = named("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        let numbers = named("4000000:4000001").unwrap();
        assert_eq!(
            (numbers.uid, numbers.gid, numbers.groups),
            (4_000_000, 4_000_001, vec![4_000_001])
        );
        for wrong in ["no such user", "-u", "", "1:x"] {
            assert_eq!(named(wrong).unwrap_err().exit, Exit::Usage, "{wrong:?}");
        }
    }

    #[test]
    fn sudo_says_who_called() {
        let called = |uid: &'static str| {
            sudo(move |name| match name {
                "SUDO_UID" => Some(uid.into()),
                "SUDO_GID" => Some("4000001".into()),
                "SUDO_USER" => Some("root".into()),
                _ => None,
            })
        };
        let caller = called("4000000").unwrap();
        // The name belongs to another user, whose groups are not taken.
        assert_eq!(
            (caller.uid, caller.gid, caller.groups),
            (4_000_000, 4_000_001, vec![4_000_001])
        );
        assert_eq!(called("x"), None);
        assert_eq!(sudo(|_| None), None);
    }
}
