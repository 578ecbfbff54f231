//! Places of a machine that waits to be taken, and has no name until then.
//!
//! They lie under a word that is no name, claimed for as long as it waits. Taking it renames the folder of its memory;
//! that of its sockets stays, and the link in the folder of its memory leads to it.

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{PlaceError, Places, check_name, is_name};
use crate::sandbox::Record;

/// Begins the words under which they lie.
const MARK: char = '~';

impl Places {
    /// Places without a name.
    pub(crate) fn waiting() -> Result<Self, PlaceError> {
        let mut bytes = [0; 8];
        let random = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        random.map_err(|error| PlaceError::Io { path: "/dev/random".into(), source: error.into() })?;
        Self::make(&format!("{MARK}{:016x}", u64::from_ne_bytes(bytes)))
    }

    /// Gives them a name. On an error they are as they were.
    pub(crate) fn rename(&mut self, name: &str) -> Result<(), PlaceError> {
        check_name(name)?;
        let new = Self::of(name)?;
        let claim = new.reserve()?;
        renameat_with(CWD, &self.memory, CWD, &new.memory, RenameFlags::NOREPLACE)
            .map_err(|error| PlaceError::Io { path: new.memory.clone(), source: error.into() })?;
        // The former claim stays: until there is a sandbox, its machine would be found under that word, too.
        self.claims.push(claim);
        (self.name, self.memory) = (new.name.clone(), new.memory.clone());
        Ok(())
    }

    /// Removes what processes left that died with machines in waiting.
    pub(crate) fn sweep() -> Result<(), PlaceError> {
        for word in Self::entries(is_waiting)? {
            if let Err(error) = Self::of(&word).and_then(|this| this.sweep_one()) {
                tracing::warn!(word, %error, "what waited to be taken, and is nobody's, cannot be removed");
            }
        }
        Ok(())
    }

    fn sweep_one(&self) -> Result<(), PlaceError> {
        // Once it is a sandbox it is removed with it.
        let has_name = |name: &str| Self::of(name).is_ok_and(|owner| owner.runtime == self.runtime);
        match Record::read(&self.runtime) {
            Ok(None) => self.reclaim().map(|_| ()),
            // The folder of its memory went with the host's.
            Ok(Some(record)) if !has_name(&record.name) && !record.machine.is_running() => self.wipe(),
            _ => Ok(()),
        }
    }
}

fn is_waiting(word: &str) -> bool {
    word.strip_prefix(MARK).is_some_and(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Vec<String> {
        Places::entries(is_waiting).unwrap()
    }

    #[test]
    fn what_waits_has_no_name_and_gets_one_that_is_free() {
        let name = format!("waiting-test-{}", std::process::id());
        let taken = Places::claim(&format!("{name}-0")).unwrap();
        let mut waiting = Places::waiting().unwrap();
        let word = waiting.name().to_owned();
        assert!(words().contains(&word) && !Places::names().unwrap().contains(&word));
        assert!(matches!(Places::open(&word), Err(PlaceError::Name(_))));
        for bad in [taken.name(), &word, "../x"] {
            waiting.rename(bad).unwrap_err();
        }
        waiting.rename(&name).unwrap();
        let found = Places::open(&name).unwrap();
        assert_eq!((found.current(), found.runtime()), (waiting.current(), waiting.runtime()));
        assert!(!found.reclaim().unwrap(), "its creator lives");
        Places::sweep().unwrap();
        assert!(waiting.runtime().is_dir() && waiting.current().is_dir());
        drop(waiting);
        assert!(!words().contains(&word) && matches!(Places::open(&name), Err(PlaceError::Missing(_))));
    }

    #[test]
    fn what_a_dead_process_left_waiting_or_in_the_middle_of_being_taken_is_swept() {
        let name = format!("swept-test-{}", std::process::id());
        for renamed in [false, true] {
            let mut waiting = Places::waiting().unwrap();
            if renamed {
                waiting.rename(&name).unwrap();
            }
            let (memory, runtime) = (waiting.memory.clone(), waiting.runtime.clone());
            waiting.settle();
            waiting.keep();
            drop(waiting);
            Places::sweep().unwrap();
            assert!(!runtime.exists());
            if renamed {
                assert!(Places::open(&name).unwrap().reclaim().unwrap());
            }
            assert!(!memory.exists());
        }
    }
}
