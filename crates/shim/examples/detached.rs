//! A sandbox behind a shim: it outlives this process, and whoever kills the shim loses nothing.
//!
//! `PATH=target/debug:$PATH cargo run --example detached -p throughline-shim`

use throughline_sandbox::Given;
use throughline_sandbox::engine::Hardware;
use throughline_shim::client::{Event, Remote};
use throughline_shim::start::{Keeping, Program, Start};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let program = Program::installed();
    let start = Start::Create {
        name: None,
        image: "default".to_owned(),
        hardware: Hardware::default(),
        given: Given::default(),
        keeping: Keeping { rm: true, ..Keeping::default() },
    };
    let name = program.start(&start).await?;
    let remote = Remote::connect(&name, program).await?;

    let mut child = remote.command("sh").args(["-c", "echo before; read line; echo after"]).stdin().spawn().await?;
    println!("{:?}", child.events.next().await?);
    let status = std::process::Command::new("kill").args(["-9", &remote.shim().to_string()]).status()?;
    assert!(status.success(), "the shim was there to be killed");
    let Event::TakenOver { shim } = remote.event().await else { return Err("the machine died".into()) };
    println!("process {shim} has taken over");

    // The same handle: the command goes on.
    child.input.write_all(b"\n").await?;
    println!("{:?}", child.events.collect().await?);
    remote.kill().await?;
    Ok(())
}
