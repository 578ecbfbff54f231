//! The system calls that no safe wrapper offers. All of the agent's unsafe code is in this file.
#![expect(unsafe_code, reason = "a thin edge around system calls; each site says why it is sound")]

use std::arch::asm;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::ioctl;
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `RNDADDENTROPY`: `_IOW('R', 0x03, int[2])`.
const ADD_ENTROPY: ioctl::Opcode = 0x4008_5203;
/// `RNDRESEEDCRNG`: `_IO('R', 0x07)`.
const RESEED: ioctl::Opcode = 0x5207;

/// Bytes of entropy that an identity carries.
const ENTROPY: usize = BYTES as usize;
const BYTES: i32 = 64;

/// The kernel's `struct rand_pool_info` with its flexible array at a fixed size.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    bytes: i32,
    data: [u8; ENTROPY],
}

/// Mixes bytes into the kernel's pool, credits them in full, and reseeds the generator from it, so that the
/// next `getrandom` depends on them. `random` is `/dev/urandom` or `/dev/random`.
pub fn add_entropy(random: impl AsFd, data: &[u8; ENTROPY]) -> io::Result<()> {
    let info = PoolInfo { entropy_bits: 8 * BYTES, bytes: BYTES, data: *data };
    // SAFETY: RNDADDENTROPY reads a rand_pool_info of 8 + `bytes` bytes, which PoolInfo lays out, and keeps no pointer.
    let add = unsafe { ioctl::Setter::<ADD_ENTROPY, PoolInfo>::new(info) };
    // SAFETY: the opcode belongs to this argument, see above; another kind of file answers ENOTTY.
    unsafe { ioctl::ioctl(random.as_fd(), add) }?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    let reseed = unsafe { ioctl::NoArg::<RESEED>::new() };
    // SAFETY: the opcode takes no argument; another kind of file answers ENOTTY.
    unsafe { ioctl::ioctl(random.as_fd(), reseed) }?;
    Ok(())
}

/// `SIOCADDRT`, `SIOCSIFFLAGS`, `SIOCSIFADDR` and `SIOCSIFNETMASK`.
const ADD_ROUTE: ioctl::Opcode = 0x890b;
const SET_FLAGS: ioctl::Opcode = 0x8914;
const SET_ADDRESS: ioctl::Opcode = 0x8916;
const SET_MASK: ioctl::Opcode = 0x891c;

/// Brings a network interface up. `socket` is any of the Internet's.
pub fn bring_up(socket: impl AsFd, interface: &str) -> io::Result<()> {
    let flags = libc::__c_anonymous_ifr_ifru { ifru_flags: (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short };
    set::<SET_FLAGS>(socket, interface, flags)
}

/// Gives a network interface its address.
pub fn set_address(socket: impl AsFd, interface: &str, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    let of = |address| libc::__c_anonymous_ifr_ifru { ifru_addr: internet(address) };
    set::<SET_ADDRESS>(&socket, interface, of(address))?;
    set::<SET_MASK>(&socket, interface, of(mask))
}

/// Sends everything that is for nobody here to `gateway`.
pub fn add_default_route(socket: impl AsFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: numbers, addresses and a name that may be absent: all zeros are a value of each.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = internet(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = internet(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = internet(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: SIOCADDRT reads an rtentry, and keeps no pointer.
    let add = unsafe { ioctl::Setter::<ADD_ROUTE, libc::rtentry>::new(route) };
    // SAFETY: the opcode belongs to this argument, see above; another kind of file answers ENOTTY.
    Ok(unsafe { ioctl::ioctl(socket.as_fd(), add) }?)
}

fn set<const WHAT: ioctl::Opcode>(
    socket: impl AsFd,
    interface: &str,
    value: libc::__c_anonymous_ifr_ifru,
) -> io::Result<()> {
    let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    // The last byte stays zero.
    for (to, byte) in name[..libc::IFNAMSIZ - 1].iter_mut().zip(interface.bytes()) {
        *to = byte.cast_signed();
    }
    let request = libc::ifreq { ifr_name: name, ifr_ifru: value };
    // SAFETY: these calls read an ifreq, and keep no pointer.
    let set = unsafe { ioctl::Setter::<WHAT, libc::ifreq>::new(request) };
    // SAFETY: the opcode belongs to this argument, see above; another kind of file answers ENOTTY.
    Ok(unsafe { ioctl::ioctl(socket.as_fd(), set) }?)
}

/// An address as `sockaddr_in` has it: port, then address.
fn internet(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, byte) in data[2..].iter_mut().zip(address.octets()) {
        *to = byte.cast_signed();
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

/// Sends any signal (real-time ones too) to a process, or to its whole process group. The caller knows that
/// the process has not been reaped, or the number could be somebody else's by now.
pub fn kill(pid: Pid, signal: i32, group: bool) -> io::Result<()> {
    let target = if group { -pid.as_raw_pid() } else { pid.as_raw_pid() };
    // SAFETY: kill(2) touches no memory of this process.
    if unsafe { libc::kill(target, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A file that becomes readable whenever a child has ended; needs a runtime's context. From now on that interrupts
/// neither the caller nor threads that it starts: a handler's frame would leave copies of all registers on the stack.
pub fn ends_of_children() -> io::Result<AsyncFd<File>> {
    let mut ends = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset makes a set of it, and SIGCHLD is a signal.
    let ends = unsafe {
        libc::sigemptyset(ends.as_mut_ptr());
        libc::sigaddset(ends.as_mut_ptr(), libc::SIGCHLD);
        ends.assume_init()
    };
    // SAFETY: both sets are valid or absent.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const ends, std::ptr::null_mut()) } {
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    // SAFETY: the set is valid; a new descriptor, if there is one, is nobody else's.
    let file = unsafe {
        match libc::signalfd(-1, &raw const ends, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => return Err(io::Error::last_os_error()),
            fd => File::from_raw_fd(fd),
        }
    };
    watch(file, Interest::READABLE)
}

/// Puts other bits into all vector registers of the calling thread, and into the place where the kernel keeps them.
///
/// Ones, not zeros: saving may skip registers that are zero, and would leave what it saved before.
#[inline(never)]
pub fn overwrite_vectors() {
    // SAFETY: the instructions write to registers only, all of which are declared; the processor has them.
    unsafe {
        asm!(
            ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            r"pcmpeqd xmm\n, xmm\n",
            ".endr",
            clobber_abi("C"),
            options(nomem, nostack)
        );
        if std::arch::is_x86_feature_detected!("avx2") {
            asm!(
                ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                r"vpcmpeqd ymm\n, ymm\n, ymm\n",
                ".endr",
                clobber_abi("C"),
                options(nomem, nostack)
            );
        }
        if std::arch::is_x86_feature_detected!("avx512f") {
            asm!(
                ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                r"vpternlogd zmm\n, zmm\n, zmm\n, 255",
                ".endr",
                clobber_abi("C"),
                options(nomem, nostack)
            );
        }
    }
    // The kernel saves them when it lets another one run.
    let moment = rustix::thread::Timespec { tv_sec: 0, tv_nsec: 1 };
    let _ = rustix::thread::nanosleep(&moment);
}

/// Watches a file for readiness; needs a runtime's context.
pub fn watch(file: File, interest: Interest) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File keeps its one descriptor open as long as it lives, and the AsyncFd owns the File.
    unsafe { AsyncFd::register_with_interest(file, interest) }.map_err(io::Error::from)
}

/// Has `setup` run in the child between fork and exec.
///
/// `setup` may only make system calls: no allocation, no locks. Its errors come back from `spawn`.
pub fn before_exec(command: &mut Command, setup: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: the child may make async-signal-safe calls only, since another thread could have held a lock at
    // the fork; `setup` is documented to make nothing but system calls.
    unsafe { command.pre_exec(setup) };
}

/// Gives every signal its default meaning back, and holds none back: both are inherited across exec.
pub fn default_signals() {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset makes a set of it; the other pointer may be null.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
    for number in 1..=64 {
        // SAFETY: SIG_DFL is no function that could run; numbers that may not be changed answer EINVAL.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_in_vector_registers() {
        const CANARY: u64 = 0x5ec7_e75e_c7e7_5ec7;
        let mut left = [[CANARY; 2]; 16];
        // SAFETY: the first two write to registers only; the last one to `left`, which is as long as all of them.
        unsafe {
            asm!(
                ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", r"movq xmm\n, {canary}",
                r"punpcklqdq xmm\n, xmm\n", ".endr",
                canary = in(reg) CANARY, clobber_abi("C"), options(nomem, nostack)
            );
            overwrite_vectors();
            asm!(
                ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", r"movdqu [{left} + 16*\n], xmm\n", ".endr",
                left = in(reg) &raw mut left, options(nostack)
            );
        }
        assert!(!left.as_flattened().contains(&CANARY), "{left:x?}");
    }
}
