//! A sandbox in this very process: link and machine live here, so bytes pass at the speed of shared memory.
//!
//! `cargo run --example embedded -p throughline-sandbox`

use throughline_sandbox::Sandbox;
use throughline_sandbox::image::{ImageBuilder, Images};
use throughline_wire::port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let images = Images::new();
    let image = tokio::task::spawn_blocking(move || images.open_or_build(Images::DEFAULT, &ImageBuilder::new()));
    let sandbox = Sandbox::builder(image.await??).memory_mib(256).create().await?;

    let output = sandbox.command("uname").arg("-sr").output().await?;
    print!("{}", String::from_utf8_lossy(&output.stdout));

    // A stream to a port of the guest: here its echo.
    let mut stream = sandbox.link().connect(port::ECHO).await?;
    stream.write_all(b"there and back\n").await?;
    let mut back = [0; 15];
    stream.read_exact(&mut back).await?;
    print!("{}", String::from_utf8_lossy(&back));

    sandbox.kill().await?;
    Ok(())
}
