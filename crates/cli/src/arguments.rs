//! The command line.

mod pool;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use throughline_sandbox::engine::{Hardware, Net};
use throughline_shim::start::Keeping;

pub use pool::PoolVerb;

/// Sandboxes on microVMs, whose connections survive snapshot, restore, and the death of either process.
#[derive(Debug, Parser)]
#[command(name = "throughline", version, propagate_version = true)]
pub struct Arguments {
    /// Print JSON: results on the standard output, errors on the standard error output
    #[arg(long, global = true, env = "THROUGHLINE_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a sandbox; with a command, run that in it
    Run(Run),
    /// Run a command in a sandbox
    Exec(Exec),
    /// Go on with a command, at the byte where the last reader left it
    Attach {
        /// The sandbox
        name: String,
        /// The command's id, as printed by `exec -d` and listed by `ps`
        id: String,
    },
    /// Copy files and folders into a sandbox, or out of it
    Cp {
        /// `NAME:PATH`, a path, or `-`: the bytes of the standard input
        source: String,
        /// `NAME:PATH`, a path, or `-`: the standard output
        dest: String,
        /// What `-` carries is a tar archive
        #[arg(long)]
        tar: bool,
        /// Whom the copies belong to in the sandbox: `name`, `uid`, `name:group` or `uid:gid`
        #[arg(long)]
        owner: Option<String>,
        /// Copy what a symbolic link names
        #[arg(short = 'L', long)]
        follow: bool,
    },
    /// List the commands of a sandbox that have not been read to their end
    Ps {
        /// The sandbox
        name: String,
    },
    /// List the sandboxes
    Ls,
    /// Show a sandbox's console
    Logs {
        /// The sandbox
        name: String,
        /// Show the shim's log instead
        #[arg(long)]
        shim: bool,
        /// Go on until the sandbox ends
        #[arg(short, long)]
        follow: bool,
    },
    /// Stop a sandbox's processors
    Pause {
        /// The sandbox
        name: String,
    },
    /// Let them run again
    Resume {
        /// The sandbox
        name: String,
    },
    /// Wait until a sandbox has ended, and say how
    Wait {
        /// The sandbox
        name: String,
    },
    /// End a sandbox at once; its name and logs stay
    Kill {
        /// The sandbox
        name: String,
    },
    /// Remove sandboxes that have ended
    Rm {
        /// The sandboxes
        #[arg(required = true)]
        names: Vec<String>,
        /// End those that run
        #[arg(short, long)]
        force: bool,
    },
    /// Remove every sandbox that has ended, and what dead processes left
    Prune,
    /// Show what is known of a sandbox or a bundle: identity, lineage, channels, bytes in flight
    Inspect {
        /// A sandbox's name, a snapshot's name, or a bundle's folder
        what: String,
    },
    /// Spawn children of a sandbox, all of this moment; it goes on, and so does each of them
    Fork(Fork),
    /// Warm pools: children that wait, loaded and paused, to be taken
    #[command(subcommand)]
    Pool(PoolVerb),
    /// Snapshots
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Images
    #[command(subcommand)]
    Image(ImageVerb),
    /// Tell whether this host can run sandboxes, what is wrong, and the command that mends it
    Doctor,
    /// Print a script that completes commands in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    Man {
        /// The folder
        folder: PathBuf,
    },
    /// Hold a sandbox: started by the others
    #[command(hide = true)]
    Shim,
    /// Hold a pool: started by `pool create`
    #[command(hide = true)]
    Keeper,
}

/// What a new sandbox is to be.
#[derive(Debug, Args)]
pub struct Run {
    /// Name; a random one without
    #[arg(long, env = "THROUGHLINE_NAME")]
    pub name: Option<String>,
    /// Guest memory, such as 256M or 1G: from 96M to 512G
    #[arg(long, default_value = "256M", env = "THROUGHLINE_MEMORY", value_parser = mebibytes)]
    pub memory: u32,
    /// Processors of the guest, at most as many as the host has
    #[arg(long, default_value_t = 1, env = "THROUGHLINE_CPUS", value_parser = processors)]
    pub cpus: u32,
    /// Network: `none`, or `user`: the guest reaches what you reach, this host itself as 10.0.2.2, and nobody reaches it
    #[arg(long, default_value = "none", env = "THROUGHLINE_NET", value_name = "none|user", value_parser = network)]
    pub net: Net,
    /// Image
    #[arg(long, default_value = "default", env = "THROUGHLINE_IMAGE")]
    pub image: String,
    #[command(flatten)]
    pub keep: Keep,
    #[command(flatten)]
    pub given: Given,
    #[command(flatten)]
    pub how: How,
    /// The command and its arguments
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// What to run.
#[derive(Debug, Args)]
pub struct Exec {
    /// The sandbox
    pub name: String,
    #[command(flatten)]
    pub how: How,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// What is done with a sandbox for as long as there is one.
#[derive(Debug, Default, Args)]
pub struct Keep {
    /// Remove the sandbox when it ends; with a command, end it with the command
    #[arg(long)]
    pub rm: bool,
    /// Take a checkpoint so often, such as 30s or 5m: when the machine dies, the sandbox goes back to the last one. It
    /// lies in memory, as large as what the guest has touched
    #[arg(long, value_name = "EVERY", value_parser = period)]
    pub checkpoint: Option<Duration>,
}

impl Keep {
    /// For the shim.
    pub fn keeping(&self) -> Keeping {
        let checkpoint_ms = self.checkpoint.map(|every| u64::try_from(every.as_millis()).unwrap_or(u64::MAX));
        Keeping { rm: self.rm, checkpoint_ms }
    }
}

/// What a guest is given beside its image or snapshot.
#[derive(Clone, Debug, Default, Args)]
pub struct Given {
    /// Host name of the guest; in that of a fork's or a pool's child `{index}` stands for its number. A random one without
    #[arg(long)]
    pub hostname: Option<String>,
    /// Give the guest a secret: its file /run/secrets/NAME, which is in no snapshot and no child that is not given it.
    /// With `fork`, `NAME` alone hands on the sandbox's own. What a process has read lies in its memory, and is in
    /// snapshots for as long as it does. `=VALUE` shows in this host's list of processes, `=@FILE` does not
    #[arg(long = "secret", value_name = "NAME=VALUE|NAME=@FILE")]
    pub secrets: Vec<String>,
}

/// How to run a command.
#[derive(Debug, Args)]
pub struct How {
    /// Set a variable; without `=`, hand on this program's own
    #[arg(short, long = "env", value_name = "K=V")]
    pub env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User: `name`, `uid`, `name:group` or `uid:gid`
    #[arg(short, long)]
    pub user: Option<String>,
    /// Hand on the standard input
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Return at once: `exec` prints the command's id, `run` the sandbox's name
    #[arg(short, long)]
    pub detach: bool,
    /// End the command after so long, such as 30s or 5m; the exit code is then 124
    #[arg(long, value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Take one; the sandbox goes on
    Create {
        /// The sandbox
        name: String,
        /// The snapshot's name, or a path with a slash
        snapshot: String,
        /// End the sandbox with it: its memory is moved, not copied
        #[arg(long)]
        stop: bool,
        /// Take it even of a guest that does not become quiet
        #[arg(long)]
        unquiesced: bool,
    },
    /// Create a sandbox that goes on where a snapshot was taken
    Restore {
        /// The snapshot's name, or a path with a slash
        snapshot: String,
        /// Name of the sandbox; a random one without
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        given: Given,
        #[command(flatten)]
        keep: Keep,
    },
    /// List the snapshots
    Ls,
    /// Remove snapshots
    Rm {
        /// The snapshots
        #[arg(required = true)]
        snapshots: Vec<String>,
    },
    /// Check every byte of a snapshot
    Verify {
        /// The snapshot's name, or a path with a slash
        snapshot: String,
    },
    /// Show a snapshot
    Inspect {
        /// The snapshot's name, or a path with a slash
        snapshot: String,
    },
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Build an image, or find it built, and give it a name
    Build {
        /// Its name
        #[arg(default_value = "default")]
        name: String,
        /// Its userland: a folder, or an archive (.tar, .tar.gz, .tar.zst) such as an exported container
        #[arg(long, value_name = "DIR|TAR")]
        rootfs: Option<PathBuf>,
        /// Boot this kernel, not the distribution's
        #[arg(long, value_name = "FILE")]
        kernel: Option<PathBuf>,
        /// That kernel's modules
        #[arg(long, value_name = "DIR", requires = "kernel")]
        modules: Option<PathBuf>,
        /// Ask for a newer kernel of the distribution
        #[arg(long)]
        refresh: bool,
    },
    /// List the images
    Ls,
    /// Remove images that nothing needs
    Rm {
        /// Names, or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
}

fn mebibytes(text: &str) -> Result<u32, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u32 = number.parse().map_err(|_| "write it like 256M or 1G".to_owned())?;
    let mebibytes = match unit {
        "M" | "MiB" | "m" => Some(number),
        "G" | "GiB" | "g" => number.checked_mul(1024),
        _ => return Err("write it like 256M or 1G".to_owned()),
    };
    let (least, most) = (Hardware::LEAST_MEMORY_MIB, Hardware::MOST_MEMORY_MIB);
    let possible = mebibytes.filter(|mebibytes| (least..=most).contains(mebibytes));
    possible.ok_or_else(|| format!("from {least}M to {}G", most >> 10))
}

fn processors(text: &str) -> Result<u32, String> {
    let most = Hardware::most_cpus_here();
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| format!("from 1 to {most}, as many as this host has"))
}

fn network(text: &str) -> Result<Net, String> {
    match text {
        "none" => Ok(Net::None),
        "user" => Ok(Net::User),
        _ => Err("`none` or `user`".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u32 = number.parse().map_err(|_| "write it like 500ms, 30s or 5m".to_owned())?;
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "" | "s" => Duration::from_secs(1),
        "m" => Duration::from_mins(1),
        "h" => Duration::from_hours(1),
        _ => return Err("write it like 500ms, 30s or 5m".to_owned()),
    };
    Ok(unit * number)
}

/// Between two of what is repeated.
fn period(text: &str) -> Result<Duration, String> {
    let period = duration(text)?;
    if period.is_zero() { Err("it must be longer than that, such as 500ms, 30s or 5m".to_owned()) } else { Ok(period) }
}

/// `fork`
#[derive(Debug, clap::Args)]
pub struct Fork {
    /// The sandbox
    pub name: String,
    /// Name of the child, or of the children before `-1`, `-2` and so on; the sandbox's own without
    pub child: Option<String>,
    /// How many
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub count: u64,
    /// End those that are there when one fails
    #[arg(long)]
    pub all_or_nothing: bool,
    #[command(flatten)]
    pub given: Given,
    #[command(flatten)]
    pub keep: Keep,
}
