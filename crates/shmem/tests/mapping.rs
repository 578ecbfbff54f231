//! Mappings of real memory.

use std::os::fd::OwnedFd;

use throughline_shmem::sync::Ordering;
use throughline_shmem::{MapError, Mapping, Populate, Words};

fn memfd(bytes: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("shmem-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, bytes).unwrap();
    fd
}

fn blocks(fd: &OwnedFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_blocks.unsigned_abs() * 512
}

#[test]
fn mapping_is_the_file_and_what_others_map_of_it() {
    let fd = memfd(8192);
    let (one, two) =
        (Mapping::file(&fd, 8192, Populate::Now).unwrap(), Mapping::file(&fd, 4096, Populate::OnTouch).unwrap());
    assert_eq!((one.len(), two.len()), (1024, 512));
    one.store(3, 0x0807_0605_0403_0201, Ordering::Release);
    assert_eq!(two.load(3, Ordering::Acquire), 0x0807_0605_0403_0201);
    let mut bytes = [0; 8];
    rustix::io::pread(&fd, &mut bytes, 24).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8]);
    drop(fd);
    two.store(0, 7, Ordering::Relaxed);
    assert_eq!(one.load(0, Ordering::Relaxed), 7);
}

#[test]
fn bulk_copies_take_buffers_of_any_alignment() {
    // Long enough for every path, and no whole number of cache lines.
    const LEN: usize = 3080;
    let fd = memfd(4096);
    let mapping = Mapping::file(&fd, 4096, Populate::OnTouch).unwrap();
    let data: Vec<u8> = (0..=250).cycle().take(LEN).collect();
    for shift in 0..8 {
        let mut shifted = vec![0xee; LEN + 8 + shift];
        shifted[shift..shift + LEN].copy_from_slice(&data);
        mapping.zero(0, 512);
        mapping.copy_in(5, &shifted[shift..shift + LEN]);
        let mut back = vec![0; LEN + 16];
        mapping.copy_out(5, &mut back[shift..shift + LEN]);
        assert_eq!(&back[shift..shift + LEN], &data[..]);
        assert_eq!((mapping.load(4, Ordering::Relaxed), mapping.load(5 + LEN / 8, Ordering::Relaxed)), (0, 0));
    }
    mapping.zero(5, 1);
    assert_eq!(mapping.load(5, Ordering::Relaxed), 0);
    assert_eq!(mapping.load(6, Ordering::Relaxed), u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15]));
}

#[test]
fn allocate_and_release_move_memory_and_keep_values() {
    let fd = memfd(1 << 20);
    let mapping = Mapping::file(&fd, 1 << 20, Populate::OnTouch).unwrap();
    assert_eq!(blocks(&fd), 0);
    mapping.allocate(512, 1024).unwrap();
    assert_eq!(blocks(&fd), 8192);
    mapping.store(512, 9, Ordering::Relaxed);
    mapping.store(1535, 8, Ordering::Relaxed);
    mapping.allocate(512, 1024).unwrap();
    assert_eq!(mapping.load(512, Ordering::Relaxed), 9);
    mapping.release(512, 1023).unwrap();
    assert_eq!(blocks(&fd), 4096, "only whole pages go");
    assert_eq!((mapping.load(1535, Ordering::Relaxed), mapping.load(1534, Ordering::Relaxed)), (8, 0));
    mapping.allocate(0, 0).unwrap();
}

#[test]
fn every_access_outside_panics() {
    let fd = memfd(4096);
    let mapping = Mapping::file(&fd, 4096, Populate::OnTouch).unwrap();
    let outside = |access: &dyn Fn(&Mapping)| {
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| access(&mapping)));
        assert!(caught.is_err());
    };
    outside(&|m| assert_ne!(m.load(512, Ordering::Relaxed), 0));
    outside(&|m| m.store(usize::MAX, 1, Ordering::Relaxed));
    outside(&|m| m.copy_out(511, &mut [0; 16]));
    outside(&|m| m.copy_in(513, &[]));
    outside(&|m| m.zero(usize::MAX, 2));
    outside(&|m| m.allocate(1, 512).unwrap_or(()));
    outside(&|m| m.release(1, 512).unwrap_or(()));
    mapping.copy_in(512, &[]);
}

#[test]
fn what_cannot_be_mapped_is_refused_with_the_reason() {
    let fd = memfd(4096);
    let error = |mapped: Result<Mapping, MapError>| mapped.unwrap_err().to_string();
    assert!(error(Mapping::file(&fd, 8192, Populate::OnTouch)).contains("8192 bytes of a file of 4096"));
    assert!(error(Mapping::file(&fd, 100, Populate::OnTouch)).contains("multiples of the page (4096"));
    assert!(error(Mapping::file(&fd, 0, Populate::OnTouch)).contains("not zero"));
    assert!(error(Mapping::physical(0x1001, 4096)).contains("0x1001"));
}
