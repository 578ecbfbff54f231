//! A host dies between any two stores of what it tells its guest about the VM itself.

use throughline_ring::{Hostname, Identity, LinkWord, Side};

use super::rig::{Fuse, TestCore, World, survives};

fn identity(seq: u64) -> Identity {
    let fill = seq as u8 * 0x11;
    let wide = u128::from_ne_bytes([fill; 16]);
    let word = u64::from_ne_bytes([fill; 8]);
    let hostname = Hostname::new(&format!("{word:x}").repeat(3)).ok();
    Identity { seq, epoch: wide, parent: wide, index: word, clock_ns: word, flags: word, entropy: [fill; 64], hostname }
}

fn give(host: &TestCore, seq: u64) {
    host.write_identity(&identity(seq));
}

/// The guest sees one identity or the other or none, never a mixture; and the number of the one that was
/// cut off is not given again.
#[test]
fn a_death_while_an_identity_is_written_never_mixes_two() {
    let run = |k| {
        let world = World::new();
        let host = world.living(Side::Host);
        give(&host, 1);
        drop(host);
        let guest = world.living(Side::Guest);
        guest.publish_link(LinkWord::Identity, 1);
        let fuse = Fuse::new(k);
        let host = survives(|| world.attach(Side::Host, &fuse));
        let _ = host.map(|host| survives(|| give(&host, 2)));
        let look = || guest.read_identity();
        let sound = |found: Option<Identity>| found.is_none_or(|found| found == identity(found.seq));
        assert!(sound(look()), "{k}: {:?}", look());
        let host = world.living(Side::Host);
        assert!(sound(look()), "{k}, after the next attach: {:?}", look());
        // Who goes on takes the next number, which must be news to the guest.
        let next = host.last_identity() + 1;
        assert!(next > 1, "{k}: number {next} was acknowledged before");
        give(&host, next);
        assert_eq!(look(), Some(identity(next)));
        fuse.made()
    };
    let stores = run(u64::MAX);
    assert!(stores > 50);
    (0..stores).for_each(|k| {
        run(k);
    });
}

#[test]
fn a_death_while_quiet_is_asked_for_leaves_the_request_or_nothing() {
    for k in 0..60 {
        let world = World::new();
        let guest = world.living(Side::Guest);
        let fuse = Fuse::new(k);
        let host = survives(|| world.attach(Side::Host, &fuse));
        let _ = host.map(|host| survives(|| host.publish_link(LinkWord::Quiesce, 1)));
        let host = world.living(Side::Host);
        let kept = host.my_word(LinkWord::Quiesce);
        assert!(kept <= 1);
        assert_eq!(guest.peer_word(LinkWord::Quiesce), kept);
    }
}
