//! What an engine says about itself, without a guest.

use throughline_sandbox::engine::{Accelerator, Engine, EngineError, Qemu};

#[tokio::test]
async fn a_missing_monitor_is_named_with_its_remedy() {
    let error = Qemu::new().binary("qemu-system-nowhere").capabilities().await.unwrap_err();
    assert!(matches!(error, EngineError::Missing { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("qemu-system-nowhere") && text.contains("apt-get install qemu-system-x86"), "{text}");
}

#[tokio::test]
async fn a_program_that_is_no_monitor_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let error = Qemu::new().binary("true").cache(cache.path()).capabilities().await.unwrap_err();
    assert!(matches!(error, EngineError::Unusable { .. }), "{error}");
}

#[tokio::test]
async fn capabilities_name_a_versioned_machine_and_are_kept() {
    let cache = tempfile::tempdir().unwrap();
    let first = Qemu::new().cache(cache.path()).capabilities().await.unwrap();
    let machine = &first.machine;
    assert!(machine.machine_type.starts_with("pc-q35-"), "{machine:?}");
    assert!(machine.version.split('.').count() >= 2, "{machine:?}");
    match machine.accelerator {
        Accelerator::Tcg => assert!(machine.cpu_model.starts_with("max"), "{machine:?}"),
        Accelerator::Kvm => assert!(machine.cpu_model.starts_with("host:")),
    }
    assert!(first.accelerator_reason.contains("KVM"), "{}", first.accelerator_reason);
    let kept = std::fs::read_dir(cache.path()).unwrap().count();
    assert_eq!(kept, 1);
    assert_eq!(Qemu::new().cache(cache.path()).capabilities().await.unwrap(), first);
}
