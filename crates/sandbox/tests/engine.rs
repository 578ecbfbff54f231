//! Real machines: boot, save and load in a chain, and every way in which one can end.

mod support;

use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use support::{COUNTING, Guest, folder, qemu, watched};
use throughline_sandbox::engine::{Accelerator, Capture, CaptureReport, Engine, EngineError, ExitReason, VmRecord};

#[tokio::test(flavor = "multi_thread")]
async fn vm_boots_and_sees_region_and_doorbell() {
    let engine = qemu();
    let started = Instant::now();
    let guest = Guest::boot(&engine, COUNTING).await;
    let mut bell = guest.bell();
    let count = bell.count().await;
    println!("boot to the first byte: {:?}", started.elapsed());
    assert!(bell.count().await > count);
    let region = std::fs::File::open(guest.folder.path().join("region")).unwrap();
    let mut word = [0; 4];
    region.read_exact_at(&mut word, 0x1000).unwrap();
    assert!(u64::from(u32::from_le_bytes(word)) >= count, "the guest's stores are in the region's file");
    assert!(guest.vm.running().await.unwrap());
    let record = guest.vm.record();
    let status = std::fs::read_to_string(format!("/proc/{}/status", record.pid)).unwrap();
    let huge = format!("THP_enabled:\t{}", u8::from(record.machine.accelerator == Accelerator::Kvm));
    assert!(status.contains(&huge), "an emulator takes no huge pages: {status}");
    let exit = watched("the end", guest.vm.kill()).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Signal(9));
    assert!(exit.console.contains("tick"), "{exit}");
}

/// Ten generations: the guest goes on where it was, and each saves again.
#[tokio::test(flavor = "multi_thread")]
async fn vm_is_saved_and_loaded_ten_times_in_a_chain() {
    let engine = qemu();
    let mut guest = Guest::boot(&engine, COUNTING).await;
    let mut bell = guest.bell();
    let mut count = bell.count().await;
    let saved = folder();
    for generation in 0..10 {
        let at = saved.path().join(generation.to_string());
        std::fs::create_dir(&at).unwrap();
        let mut capture = begin(&guest, &at).await;
        let paused = Instant::now();
        guest.vm.pause().await.unwrap();
        let stopped = paused.elapsed();
        guest.vm.save(&at.join("state")).await.unwrap();
        let devices = paused.elapsed().saturating_sub(stopped);
        let report = tokio::task::spawn_blocking(move || capture.finish()).await.unwrap().unwrap();
        let corrected = paused.elapsed().saturating_sub(stopped + devices);
        let still = paused.elapsed();
        std::fs::copy(guest.folder.path().join("region"), at.join("region")).unwrap();
        guest.vm.resume().await.unwrap();
        println!(
            "generation {generation}: {still:?} (stop {stopped:?}, devices {devices:?}, RAM {corrected:?}), {report:?}"
        );
        // The source goes on, and is of no use to the copy.
        let last = bell.count().await;
        assert!(last > count);
        watched("the end", guest.vm.kill()).await.unwrap();
        guest = Guest::load(&engine, &at).await;
        let loaded = guest.loading;
        assert!(!guest.vm.running().await.unwrap(), "a loaded machine waits");
        std::fs::remove_dir_all(&at).unwrap();
        bell = guest.bell();
        let resumed = Instant::now();
        guest.vm.resume().await.unwrap();
        let first = bell.count().await;
        println!("  loaded {loaded:?}, first byte {:?}", loaded + resumed.elapsed());
        assert!(first > count, "{first} comes after {count}");
        count = bell.count().await;
        assert!(count > first);
    }
}

async fn begin(guest: &Guest, at: &std::path::Path) -> Capture {
    let (source, image) = (guest.vm.ram().unwrap(), at.join("ram"));
    tokio::task::spawn_blocking(move || Capture::begin(source, &image)).await.unwrap().unwrap()
}

/// Saves a machine that is to be ended then.
async fn save_last(guest: &Guest, at: &std::path::Path) -> CaptureReport {
    let (source, image) = (guest.vm.ram().unwrap(), at.join("ram"));
    let begin = move || Capture::begin_last(source, &image).unwrap();
    let mut capture = tokio::task::spawn_blocking(begin).await.unwrap();
    guest.vm.pause().await.unwrap();
    guest.vm.save(&at.join("state")).await.unwrap();
    tokio::task::spawn_blocking(move || capture.finish()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_that_stops_shares_its_ram_with_the_image() {
    let engine = qemu();
    let guest = Guest::boot(&engine, COUNTING).await;
    let count = guest.bell().count().await;
    let saved = folder();
    let at = saved.path();
    let report = save_last(&guest, at).await;
    assert!(report.shared);
    guest.vm.kill().await.unwrap();
    std::fs::copy(guest.folder.path().join("region"), at.join("region")).unwrap();
    // Two children of one image, and a copy-on-write machine that stops as well.
    let (first, second) = (Guest::load(&engine, at).await, Guest::load(&engine, at).await);
    for child in [&first, &second] {
        child.vm.resume().await.unwrap();
        assert!(child.bell().count().await > count);
    }
    let grandchild = folder();
    let at = grandchild.path();
    let report = save_last(&first, at).await;
    assert!(report.shared && report.delta);
    std::fs::copy(first.folder.path().join("region"), at.join("region")).unwrap();
    let third = Guest::load(&engine, at).await;
    third.vm.resume().await.unwrap();
    assert!(third.bell().count().await > count);
    // Without a name the image cannot get another one.
    drop((guest, first, second, saved, grandchild));
    let last = folder();
    let at = last.path();
    let report = save_last(&third, at).await;
    assert!(!report.shared && !report.delta && report.copied > 0, "{report:?}");
    std::fs::copy(third.folder.path().join("region"), at.join("region")).unwrap();
    let fourth = Guest::load(&engine, at).await;
    fourth.vm.resume().await.unwrap();
    assert!(fourth.bell().count().await > count);
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_killed_from_outside_is_noticed() {
    let guest = Guest::boot(&qemu(), COUNTING).await;
    guest.bell().count().await;
    let pid = rustix::process::Pid::from_raw(guest.vm.record().pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let exit = guest.ended().await;
    assert_eq!(exit.reason, ExitReason::Signal(9));
    assert!(exit.console.contains("tick"), "{exit}");
    let error = guest.vm.pause().await.unwrap_err();
    assert!(matches!(error, EngineError::Ended { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_panic_is_told_with_the_console() {
    let guest = Guest::boot(&qemu(), "echo about to fail; exit 3\n").await;
    let exit = guest.ended().await;
    assert_eq!(exit.reason, ExitReason::Panicked);
    assert!(exit.console.contains("about to fail") && exit.console.contains("Kernel panic"), "{exit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_power_off_is_told_from_a_panic() {
    let guest = Guest::boot(&qemu(), "echo good night; poweroff -f; sleep 100\n").await;
    let exit = guest.ended().await;
    assert_eq!(exit.reason, ExitReason::PoweredOff, "{exit}");
    assert!(exit.console.contains("good night"), "{exit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_restart_ends_the_machine() {
    let guest = Guest::boot(&qemu(), "reboot -f; sleep 100\n").await;
    assert_eq!(guest.ended().await.reason, ExitReason::Restarted);
}

/// The new owner knows nothing but the record.
#[tokio::test(flavor = "multi_thread")]
async fn vm_is_taken_over_by_its_record() {
    let engine = qemu();
    let mut guest = Guest::boot(&engine, COUNTING).await;
    let count = guest.bell().count().await;
    let record = guest.vm.record().clone();
    // Dropping the old owner closes its control socket, as its death would.
    guest.vm = reattach(&record, guest.vm).await;
    assert!(guest.vm.running().await.unwrap());
    assert!(guest.bell().count().await > count);
    let mut gone = record;
    gone.start_time += 1;
    let error = engine.reattach(&gone).await.err().unwrap();
    assert!(matches!(error, EngineError::Gone { .. }), "{error}");
}

async fn reattach(
    record: &VmRecord,
    old: Box<dyn throughline_sandbox::engine::Vm>,
) -> Box<dyn throughline_sandbox::engine::Vm> {
    drop(old);
    qemu().reattach(record).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_of_another_machine_is_refused_before_loading() {
    let engine = qemu();
    let guest = Guest::boot(&engine, COUNTING).await;
    let mut machine = guest.vm.record().machine.clone();
    machine.machine_type = "pc-q35-2.4".into();
    let empty = || tempfile::tempfile().unwrap();
    let config = throughline_sandbox::engine::VmConfig {
        folder: guest.folder.path().to_path_buf(),
        hardware: support::HARDWARE,
        region: empty(),
        rootfs: None,
    };
    let spec = throughline_sandbox::engine::LoadSpec { config, machine, ram: empty(), delta: None, state: empty() };
    let error = engine.load(spec).await.err().unwrap();
    assert!(matches!(error, EngineError::OtherMachine { .. }), "{error}");
    assert!(error.to_string().contains("pc-q35-2.4"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_console_stays_small_whatever_the_guest_prints() {
    let script = "i=0; while [ $i -lt 4 ]; do i=$((i+1)); yes 0123456789abcdef | head -c 100000; done; echo done; poweroff -f; sleep 9\n";
    let guest = Guest::boot(&qemu(), script).await;
    let exit = guest.ended().await;
    assert!(exit.console.contains("done"), "{exit}");
    let size = |name: &str| std::fs::metadata(guest.folder.path().join(name)).map_or(0, |data| data.len());
    assert!(size("console.log") + size("console.old") < 1 << 20);
    assert!(size("console.old") > 0, "400 KB were printed");
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_whose_caller_gave_up_does_what_it_was_told_and_goes_on_listening() {
    let guest = Guest::boot(&qemu(), COUNTING).await;
    let number = guest.vm.record().pid;
    let pid = Pid::from_raw(number).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let stopped = || std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap().contains(") T ");
    watched("the stop", async {
        while !stopped() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let given_up = tokio::time::timeout(Duration::from_millis(50), guest.vm.pause()).await;
    assert!(given_up.is_err(), "a monitor that is stopped has answered");
    kill_process(pid, Signal::CONT).unwrap();
    watched("the pause", async { while guest.vm.running().await.unwrap() {} }).await;
    guest.vm.resume().await.unwrap();
    assert!(guest.vm.running().await.unwrap());
    guest.vm.kill().await.unwrap();
}

/// The inner half boots and waits to be killed; the outer one takes its machine over.
#[tokio::test(flavor = "multi_thread")]
async fn vm_outlives_its_host_process() {
    const FOLDER: &str = "THROUGHLINE_TEST_HOST";
    if let Some(record) = std::env::var_os(FOLDER) {
        let guest = Guest::boot(&qemu(), COUNTING).await;
        guest.bell().count().await;
        std::fs::write(record, serde_json::to_vec(guest.vm.record()).unwrap()).unwrap();
        println!("\nready");
        return std::future::pending().await;
    }
    let folder = folder();
    let path = folder.path().join("record");
    let mut host = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "vm_outlives_its_host_process", "--nocapture"])
        .env(FOLDER, &path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = host.stdout.take().unwrap();
    let ready = tokio::task::spawn_blocking(|| {
        use std::io::BufRead;
        std::io::BufReader::new(output).lines().any(|line| line.unwrap() == "ready")
    });
    let ready = watched("the host process", ready).await.unwrap();
    host.kill().unwrap();
    host.wait().unwrap();
    assert!(ready, "the inner test failed");
    let record: VmRecord = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let vm = watched("the take-over", qemu().reattach(&record)).await.unwrap();
    let guest = Guest::adopt(vm);
    assert!(guest.vm.running().await.unwrap());
    let mut bell = guest.bell();
    let count = bell.count().await;
    assert!(bell.count().await > count);
    let exit = watched("the end", guest.vm.kill()).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Unknown, "the new owner is not its parent");
    std::fs::remove_dir_all(record.folder).unwrap();
}
