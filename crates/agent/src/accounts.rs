//! Users and groups, from `/etc/passwd` and `/etc/group`.
//!
//! The agent is a static binary: the C library's lookups would load name services at run time.

use std::path::Path;
use std::{fs, io};

/// Whom a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Login name; the number where there is none.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// An account that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// No such user.
    #[error("there is no user {0:?} in the guest's /etc/passwd; a number needs no entry")]
    NoUser(String),
    /// No such group.
    #[error("there is no group {0:?} in the guest's /etc/group; a number needs no entry")]
    NoGroup(String),
    /// A file that exists and cannot be read.
    #[error("cannot read {file} in the guest: {source}")]
    Read {
        /// Its path.
        file: String,
        /// Why.
        source: io::Error,
    },
}

/// The two files' contents.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads the files below `etc`; one that is missing counts as empty.
    pub fn read(etc: &Path) -> Result<Self, AccountError> {
        let read = |name: &str| {
            let path = etc.join(name);
            match fs::read(&path) {
                Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
                Err(source) => Err(AccountError::Read { file: path.display().to_string(), source }),
            }
        };
        Ok(Self { passwd: read("passwd")?, group: read("group")? })
    }

    /// The superuser, whatever the files say.
    pub fn root() -> Account {
        nameless(0)
    }

    /// The account for `user`, `uid`, `user:group` or `uid:gid`; root for nothing.
    pub fn find(&self, spec: Option<&str>) -> Result<Account, AccountError> {
        let spec = spec.filter(|spec| !spec.is_empty()).unwrap_or("0");
        let (user, group) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (spec, None),
        };
        let mut account = self.user(user)?;
        if let Some(group) = group {
            // As container tools do: a group that is named replaces all that the user is in.
            account.gid = self.group(group)?;
            account.groups = vec![account.gid];
        }
        Ok(account)
    }

    fn user(&self, user: &str) -> Result<Account, AccountError> {
        let number = user.parse::<u32>().ok();
        let entry = lines(&self.passwd).find_map(|fields| match fields[..] {
            [name, _, uid, gid, _, home, shell, ..] => {
                let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
                (name == user || number == Some(uid)).then_some((name, uid, gid, home, shell))
            }
            _ => None,
        });
        match (entry, number) {
            (Some((name, uid, gid, home, shell)), _) => Ok(Account {
                name: name.to_owned(),
                uid,
                gid,
                groups: self.groups_of(name, gid),
                home: or(home, "/"),
                shell: or(shell, "/bin/sh"),
            }),
            (None, Some(uid)) => Ok(nameless(uid)),
            (None, None) if user == "root" => Ok(nameless(0)),
            (None, None) => Err(AccountError::NoUser(user.to_owned())),
        }
    }

    fn group(&self, group: &str) -> Result<u32, AccountError> {
        lines(&self.group)
            .find_map(|fields| match fields[..] {
                [name, _, gid, ..] if name == group => gid.parse().ok(),
                _ => None,
            })
            .or_else(|| group.parse().ok())
            .ok_or_else(|| AccountError::NoGroup(group.to_owned()))
    }

    fn groups_of(&self, user: &str, primary: u32) -> Vec<u32> {
        let mut groups = vec![primary];
        for fields in lines(&self.group) {
            if let [_, _, gid, members, ..] = fields[..]
                && members.split(',').any(|member| member == user)
                && let Ok(gid) = gid.parse()
                && !groups.contains(&gid)
            {
                groups.push(gid);
            }
        }
        groups
    }
}

/// A number without an entry.
fn nameless(uid: u32) -> Account {
    let (name, home) = if uid == 0 { ("root".to_owned(), "/root") } else { (uid.to_string(), "/") };
    Account { name, uid, gid: 0, groups: vec![0], home: home.to_owned(), shell: "/bin/sh".to_owned() }
}

fn or(field: &str, default: &str) -> String {
    if field.is_empty() { default.to_owned() } else { field.to_owned() }
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/bash\nbroken\nbad:x:one:1::/:\n\
                     alice:x:1000:1000::/home/alice:\n"
                .into(),
            group: "root:x:0:\nwheel:x:10:root,alice\nalice:x:1000:alice\naudio:x:29:bob,alice\n".into(),
        }
    }

    #[test]
    fn users_by_name_and_number() {
        let alice = accounts().find(Some("alice")).unwrap();
        assert_eq!((alice.uid, alice.gid), (1000, 1000));
        assert_eq!(alice.groups, [1000, 10, 29]);
        assert_eq!((alice.home.as_str(), alice.shell.as_str()), ("/home/alice", "/bin/sh"));
        assert_eq!(accounts().find(Some("1000")).unwrap(), alice);
        for spec in [None, Some(""), Some("0"), Some("root")] {
            assert_eq!(accounts().find(spec).unwrap().shell, "/bin/bash");
        }
    }

    #[test]
    fn groups_replace_the_users_own() {
        let alice = accounts().find(Some("alice:audio")).unwrap();
        assert_eq!((alice.gid, alice.groups), (29, vec![29]));
        let numbers = accounts().find(Some("7:8")).unwrap();
        assert_eq!((numbers.uid, numbers.gid, numbers.name.as_str()), (7, 8, "7"));
    }

    #[test]
    fn unknown_names_are_refused() {
        let refused = |spec| accounts().find(Some(spec)).unwrap_err().to_string();
        assert!(refused("nobody").contains("no user \"nobody\""));
        assert!(refused("alice:staff").contains("no group \"staff\""));
        assert!(refused("bad").contains("no user"), "an entry without numbers is no entry");
        assert!(refused("-1").contains("no user"));
    }

    #[test]
    fn root_needs_no_files() {
        let empty = Accounts::read(Path::new("/nonexistent")).unwrap();
        assert_eq!(empty.find(None).unwrap().home, "/root");
        assert_eq!(empty.find(Some("root")).unwrap().uid, 0);
        assert!(empty.find(Some("alice")).is_err());
    }
}
