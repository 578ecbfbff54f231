//! The user's secrets, as files on tmpfs that are there whenever something of the user's runs, and at no other time.
//!
//! Before the guest is quiet their bytes are overwritten in place, so that no snapshot has them; a process that has one
//! open or mapped finds it again once it was handed over anew. From then until that they are *owed*.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use throughline_wire::secrets::{MAX_VALUE, MOST, is_name};
use tokio::sync::watch;

/// Why a secret is not in place.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The host broke the rules.
    #[error("{0}")]
    Rules(&'static str),
    /// Its file.
    #[error("cannot write the secret {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// One that is in place, or owed.
#[derive(Debug)]
struct Held {
    name: String,
    file: File,
    /// Bytes that may be in it.
    length: usize,
    /// The turn that handed it over last.
    turn: u64,
}

/// Which files are secrets, or have been. For threads: those are not stopped where secrets are overwritten, and what they
/// read would stay in the agent's memory.
#[derive(Clone, Debug, Default)]
pub struct Files(Arc<Mutex<HashSet<(u64, u64)>>>);

impl Files {
    /// Whether the file of this device and number is one.
    pub fn has(&self, device: u64, number: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&(device, number))
    }

    fn add(&self, file: &File) -> io::Result<()> {
        let data = file.metadata()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((data.dev(), data.ino()));
        Ok(())
    }
}

/// All of them.
#[derive(Debug)]
pub struct Secrets {
    folder: PathBuf,
    files: Files,
    held: RefCell<Vec<Held>>,
    owed: watch::Sender<bool>,
    /// Who hands them over: the last one counts.
    turn: Cell<u64>,
}

/// One channel's turn to hand them over.
#[derive(Clone, Copy, Debug)]
pub struct Turn(u64);

impl Secrets {
    /// None yet; `folder` is made with the first.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            files: Files::default(),
            held: RefCell::default(),
            owed: watch::Sender::new(false),
            turn: Cell::new(0),
        }
    }

    /// Which files are secrets, from now on too.
    pub fn files(&self) -> Files {
        self.files.clone()
    }

    /// Whether the user's processes have to wait for them.
    pub fn are_owed(&self) -> bool {
        *self.owed.borrow()
    }

    /// Waits until none is owed. Cancel-safe.
    pub async fn in_place(&self) {
        let _ = self.owed.subscribe().wait_for(|owed| !*owed).await;
    }

    /// Overwrites them: those that there are are owed from now on.
    pub fn erase(&self) -> Result<(), SecretError> {
        // What is being handed over comes too late.
        self.turn.set(self.turn.get() + 1);
        let held = self.held.borrow();
        if !held.is_empty() {
            self.owed.send_replace(true);
        }
        // What went to the host last may be in them.
        crate::sys::overwrite_vectors();
        held.iter().try_for_each(|held| self.overwrite(held))
    }

    /// Somebody else's from now on: takes the old ones away, and owes new ones if they `follow`. A file whose name
    /// comes again stays, for those who have it open.
    pub fn renew(&self, follow: bool) -> Result<(), SecretError> {
        self.erase()?;
        if !follow {
            self.held.borrow_mut().drain(..).try_for_each(|held| self.remove(&held))?;
        }
        self.owed.send_replace(follow);
        Ok(())
    }

    /// Begins to hand them over.
    pub fn begin(&self) -> Turn {
        self.turn.set(self.turn.get() + 1);
        Turn(self.turn.get())
    }

    /// The next bytes of one.
    pub fn piece(&self, Turn(turn): Turn, name: &str, data: &[u8]) -> Result<(), SecretError> {
        self.check(turn)?;
        if !is_name(name) {
            return Err(SecretError::Rules("a secret's name is not one"));
        }
        let failed = |source| SecretError::Io { path: self.folder.join(name), source };
        let mut all = self.held.borrow_mut();
        let mut at = all.iter().position(|held| held.name == name);
        // Whoever may remove files may have removed this one.
        if let Some(gone) = at.filter(|at| all[*at].file.metadata().map_or(true, |data| data.nlink() == 0)) {
            all.swap_remove(gone);
            at = None;
        }
        let at = match at {
            Some(at) => at,
            None if all.len() >= MOST => return Err(SecretError::Rules("there are too many secrets")),
            None => {
                all.push(Held { name: name.to_owned(), file: self.create(name).map_err(failed)?, length: 0, turn: 0 });
                all.len() - 1
            }
        };
        let held = &mut all[at];
        if held.turn != turn {
            (held.turn, held.length) = (turn, 0);
        }
        let end = held.length + data.len();
        if end > MAX_VALUE {
            return Err(SecretError::Rules("a secret is too long"));
        }
        held.file.write_all_at(data, held.length as u64).map_err(failed)?;
        held.length = end;
        Ok(())
    }

    /// All were handed over: none is owed any more, and others go.
    pub fn end(&self, Turn(turn): Turn) -> Result<(), SecretError> {
        self.check(turn)?;
        let (kept, others): (Vec<_>, Vec<_>) = self.held.take().into_iter().partition(|held| held.turn == turn);
        for held in &kept {
            let failed = |source| SecretError::Io { path: self.folder.join(&held.name), source };
            held.file.set_len(held.length as u64).map_err(failed)?;
        }
        self.held.replace(kept);
        others.iter().try_for_each(|held| self.overwrite(held).and_then(|()| self.remove(held)))?;
        self.owed.send_replace(false);
        Ok(())
    }

    fn check(&self, turn: u64) -> Result<(), SecretError> {
        if turn == self.turn.get() { Ok(()) } else { Err(SecretError::Rules("another channel hands the secrets over")) }
    }

    /// A file that everybody may read.
    fn create(&self, name: &str) -> io::Result<File> {
        fs::create_dir_all(&self.folder)?;
        fs::set_permissions(&self.folder, Permissions::from_mode(0o755))?;
        let path = self.folder.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = File::options().write(true).create_new(true).open(path)?;
        self.files.add(&file)?;
        file.set_permissions(Permissions::from_mode(0o444))?;
        Ok(file)
    }

    fn overwrite(&self, held: &Held) -> Result<(), SecretError> {
        let failed = |source| SecretError::Io { path: self.folder.join(&held.name), source };
        // As long as it is: whoever may write it may have made it longer, with the same bytes for all we know.
        let length = held.file.metadata().map_err(failed)?.len().min(MAX_VALUE as u64) as usize;
        held.file.write_all_at(&vec![0; length.max(held.length)], 0).map_err(failed)
    }

    fn remove(&self, held: &Held) -> Result<(), SecretError> {
        let path = self.folder.join(&held.name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(SecretError::Io { path, source }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn hand_over(secrets: &Secrets, values: &[(&str, &[u8])]) -> Result<(), SecretError> {
        let turn = secrets.begin();
        for (name, value) in values {
            secrets.piece(turn, name, &[])?;
            value.chunks(3).try_for_each(|data| secrets.piece(turn, name, data))?;
        }
        secrets.end(turn)
    }

    #[test]
    fn secrets_are_overwritten_in_place_and_come_back_for_those_who_have_them_open() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = Secrets::new(folder.path().join("secrets"));
        let path = |name: &str| folder.path().join("secrets").join(name);
        secrets.renew(true).unwrap();
        assert!(secrets.are_owed());
        hand_over(&secrets, &[("key", b"value"), ("empty", b"")]).unwrap();
        assert!(!secrets.are_owed());
        assert_eq!(fs::read(path("key")).unwrap(), b"value");
        assert_eq!(fs::read(path("empty")).unwrap(), b"");
        assert_eq!(fs::metadata(path("key")).unwrap().mode() & 0o777, 0o444);
        let mut open = File::open(path("key")).unwrap();

        secrets.erase().unwrap();
        assert!(secrets.are_owed());
        assert_eq!(fs::read(path("key")).unwrap(), [0; 5]);
        // Removed by somebody; a shorter value; another one.
        fs::remove_file(path("empty")).unwrap();
        hand_over(&secrets, &[("key", b"four"), ("empty", b"no more"), ("new", b"x")]).unwrap();
        let mut bytes = Vec::new();
        open.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"four");
        assert_eq!(fs::read(path("empty")).unwrap(), b"no more");

        // Somebody else, with one of the old ones; then somebody with none.
        secrets.renew(true).unwrap();
        hand_over(&secrets, &[("new", b"y")]).unwrap();
        assert!(!path("key").exists() && fs::read(path("new")).unwrap() == b"y");
        secrets.renew(false).unwrap();
        assert!(!secrets.are_owed() && !path("new").exists());
        secrets.erase().unwrap();
        assert!(!secrets.are_owed(), "there is nothing to owe");
    }

    #[test]
    fn what_is_handed_over_is_bounded_and_the_last_who_does_it_counts() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = Secrets::new(folder.path().to_owned());
        secrets.renew(true).unwrap();
        let first = secrets.begin();
        secrets.piece(first, "a", b"1").unwrap();
        let second = secrets.begin();
        secrets.piece(first, "a", b"2").unwrap_err();
        secrets.end(first).unwrap_err();
        assert!(secrets.are_owed());
        for bad in ["", ".", "..", "a/b", "../a", ".a", "ä", &"a".repeat(65)] {
            secrets.piece(second, bad, b"1").unwrap_err();
        }
        let full = vec![1; MAX_VALUE];
        secrets.piece(second, "a", &full).unwrap();
        secrets.piece(second, "a", b"1").unwrap_err();
        (1..MOST).for_each(|number| secrets.piece(second, &format!("s{number}"), b"1").unwrap());
        secrets.piece(second, "one-more", b"1").unwrap_err();
        secrets.end(second).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), MOST);
    }
}
