//! Process 1 of a Throughline guest.

use std::process::ExitCode;

use throughline_agent::{boot, console};

/// Whatever passes through the agent may be a secret, and what is freed lies in the next snapshot.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> = zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    if std::process::id() != 1 {
        console::say("this is process 1 of a Throughline guest, and does nothing elsewhere");
        return ExitCode::from(2);
    }
    // A panic of process 1 would panic the kernel; say what happened, in one line, and end in good order.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("no reason given");
        console::say(&format!("fatal: a bug in the agent at {place}: {}", text.replace('\n', " ")));
        boot::power_off();
    }));
    if let Err(error) = boot::run() {
        console::say(&format!("fatal: {error}"));
    }
    boot::power_off();
    ExitCode::FAILURE
}
