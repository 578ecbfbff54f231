//! Creating a sandbox: a machine boots from an image.

use std::sync::Arc;
use std::time::{Duration, Instant};

use throughline::{Geometry, Hostname, Link, Region, Sidecar};

use super::start::{Starting, identity, region_file};
use super::{About, Sandbox, Timings};
use crate::engine::{BootSpec, Engine, Hardware, Net, Qemu, VmConfig};
use crate::image::{Image, ImageError};
use crate::places::Places;
use crate::{Given, SandboxError};

/// How to create a sandbox. Made by [`Sandbox::builder`].
#[must_use = "nothing is created before `create`"]
pub struct SandboxBuilder {
    image: Image,
    name: Option<String>,
    given: Given,
    hardware: Hardware,
    geometry: Geometry,
    engine: Option<Arc<dyn Engine>>,
    kernel_arguments: Vec<String>,
    deadline: Duration,
}

impl Sandbox {
    /// A sandbox that boots from an image.
    pub fn builder(image: Image) -> SandboxBuilder {
        SandboxBuilder {
            image,
            name: None,
            given: Given::default(),
            hardware: Hardware::default(),
            geometry: Geometry::default(),
            engine: None,
            kernel_arguments: Vec::new(),
            deadline: SandboxBuilder::DEFAULT_DEADLINE,
        }
    }
}

impl SandboxBuilder {
    /// How long a guest may take until it is ready.
    pub const DEFAULT_DEADLINE: Duration = Duration::from_mins(1);

    /// The name; a random one without this.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The guest's host name, in place before anything of the user's runs: 1 to 63 letters, digits, `-` and `.`. One
    /// that follows from its machine-id without this.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.given.hostname = Some(hostname.into());
        self
    }

    /// A secret: the file `/run/secrets/NAME` of the guest, which everybody in it may read, of up to 64 KiB; there whenever
    /// something of the user's runs, and in no snapshot. What a process has read lies in its own memory, and is in
    /// snapshots for as long as it is there. The name is a file's: letters, digits, `-`, `_` and `.`.
    pub fn secret(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.given.secrets.insert(name, value);
        self
    }

    /// Everything that the guest is given.
    pub fn given(mut self, given: Given) -> Self {
        self.given = given;
        self
    }

    /// Guest memory in MiB, from 96 to 524288; 256 without this.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.hardware.memory_mib = memory_mib;
        self
    }

    /// Processors of the guest, from 1 to as many as the host has; 1 without this.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.hardware.cpus = cpus;
        self
    }

    /// The guest's network; none without this.
    pub fn net(mut self, net: Net) -> Self {
        self.hardware.net = net;
        self
    }

    /// The channels of the connection.
    pub fn geometry(mut self, geometry: Geometry) -> Self {
        self.geometry = geometry;
        self
    }

    /// The engine; QEMU without this.
    pub fn engine(mut self, engine: Arc<dyn Engine>) -> Self {
        self.engine = Some(engine);
        self
    }

    /// Adds a word to the kernel's command line.
    pub fn kernel_argument(mut self, word: impl Into<String>) -> Self {
        self.kernel_arguments.push(word.into());
        self
    }

    /// How long the guest may take until it is ready.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Creates the sandbox, and returns when its guest is ready: the agent has attached and has taken
    /// on its identity. Dropping the future ends what there is of it.
    pub async fn create(mut self) -> Result<Sandbox, SandboxError> {
        let started = Instant::now();
        self.hardware.check_new()?;
        let hostname = self.given.check(0)?;
        if self.hardware.net == Net::User && !self.image.has_network() {
            return Err(ImageError::NoNetwork { kernel: self.image.kernel_version().to_owned() }.into());
        }
        let name = self.name.take().map_or_else(random_name, Ok)?;
        let places = Places::claim(&name)?;
        self.given.secrets.write(&places)?;
        let current = places.current();
        let region = Region::create(&current.join("region"), &self.geometry)?;
        let sidecar = Sidecar::create(&current.join("sidecar"), &region)?;
        let engine = self.engine.take().unwrap_or_else(|| Arc::new(Qemu::new()));
        let config = VmConfig {
            folder: places.runtime().to_path_buf(),
            hardware: self.hardware,
            region: region_file(&region)?,
            rootfs: self.image.open_rootfs()?,
        };
        let mut kernel_arguments = std::mem::take(&mut self.kernel_arguments);
        if !self.given.secrets.is_empty() {
            // What a process that has ended had read must not lie in the next snapshot.
            kernel_arguments.push("init_on_free=1".to_owned());
        }
        let spec = BootSpec { config, image: &self.image, kernel_arguments, ram: current.join("ram") };
        let vm = Arc::from(engine.boot(spec).await?);
        let machine = started.elapsed();
        let starting = Starting { vm, places, deadline: self.deadline, started, former: None };
        match self.greet(&starting, region, sidecar, hostname).await {
            Ok((link, about)) => {
                Box::pin(starting.ready(link, about, machine, std::mem::take(&mut self.given.secrets))).await
            }
            Err(error) => Err(starting.abandon(error).await),
        }
    }

    /// Waits for the agent, and gives it its first identity: by then the clock is right.
    async fn greet(
        &self,
        starting: &Starting,
        region: Region,
        sidecar: Sidecar,
        hostname: Option<Hostname>,
    ) -> Result<(Link, About), SandboxError> {
        let timeline = sidecar.timeline();
        let link = starting.attach(region, sidecar)?;
        starting.answer(link.agent_attached(starting.deadline)).await?;
        let agent = link.agent_version();
        if agent != throughline_wire::PROTOCOL {
            return Err(SandboxError::Agent { found: agent, expected: throughline_wire::PROTOCOL });
        }
        link.give_identity(&identity(1, timeline, hostname, &self.given.secrets)?);
        starting.answer(link.identity_taken(starting.deadline)).await?;
        starting.hand_over(&link, &self.given.secrets).await?;
        Ok((link, self.about(agent)))
    }

    fn about(&self, agent: u32) -> About {
        About {
            image: self.image.id().to_owned(),
            rootfs: self.image.rootfs().cloned(),
            kernel: self.image.kernel_version().to_owned(),
            hardware: self.hardware,
            agent,
            ram: None,
            timings: Timings::default(),
        }
    }
}

/// A name that nobody has.
pub(super) fn random_name() -> Result<String, SandboxError> {
    let mut bytes = [0; 5];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| SandboxError::io("choose a name")(error.into()))?;
    Ok(bytes.iter().fold("sb-".to_owned(), |name, byte| format!("{name}{byte:02x}")))
}
