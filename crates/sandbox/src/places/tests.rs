//! Names and claims.

use super::*;

#[test]
fn names_have_rules() {
    for good in ["a", "web-1", "0.x_y", &"a".repeat(63)] {
        assert!(check_name(good).is_ok(), "{good}");
    }
    for bad in ["", "../x", ".x", "-x", "a/b", "A", "a b", "ä", &"a".repeat(64)] {
        assert!(check_name(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_name_is_claimed_once_and_given_back() {
    let name = format!("claim-test-{}", std::process::id());
    let first = Places::claim(&name).unwrap();
    let me = std::process::id();
    assert!(matches!(Places::claim(&name), Err(PlaceError::Busy { process: Some(pid), .. }) if pid == me));
    assert!(!first.reclaim().unwrap(), "its creator lives");
    assert!(first.current().is_dir(), "the second claim took nothing away");
    let memory = first.memory.clone();
    drop(first);
    assert!(!memory.exists());
    drop(Places::claim(&name).unwrap());
}
#[test]
fn a_name_whose_creator_died_is_free_again_and_that_of_a_sandbox_is_not() {
    let name = format!("reclaim-test-{}", std::process::id());
    let left = |name: &str| {
        let mut places = Places::claim(name).unwrap();
        places.settle();
        places.keep();
    };
    left(&name);
    assert!(Places::names().unwrap().contains(&name));
    assert!(Places::open(&name).unwrap().reclaim().unwrap());
    assert!(matches!(Places::open(&name), Err(PlaceError::Missing(_))));
    left(&name);
    let second = Places::claim(&name).unwrap();
    fs::write(second.runtime().join(RECORD), "{}").unwrap();
    second.keep();
    drop(second);
    assert!(!Places::open(&name).unwrap().reclaim().unwrap());
    assert!(matches!(Places::claim(&name), Err(PlaceError::Taken(_))));
    Places::open(&name).unwrap().clear().unwrap();
    assert!(!Places::names().unwrap().contains(&name));
}

#[test]
fn who_has_a_sandbox_that_was_removed_takes_nothing_from_the_next_one_of_its_name() {
    let name = format!("replaced-test-{}", std::process::id());
    let make = || {
        let mut places = Places::claim(&name).unwrap();
        fs::write(places.runtime().join(RECORD), "{}").unwrap();
        places.settle();
        places
    };
    let (first, seen) = (make(), Places::open(&name).unwrap());
    Places::open(&name).unwrap().clear().unwrap();
    let second = make();
    assert!(first.is_replaced() && seen.is_replaced() && !second.is_replaced());
    first.free_memory().unwrap();
    seen.clear().unwrap();
    drop(first);
    assert!(second.current().is_dir() && second.exists());
    drop(second);
    assert!(!Places::names().unwrap().contains(&name));
}
