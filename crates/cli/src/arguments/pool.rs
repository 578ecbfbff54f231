//! `pool`

use clap::Subcommand;

use super::{Given, Keep};

/// What to do with pools.
#[derive(Debug, Subcommand)]
pub enum PoolVerb {
    /// Keep children in waiting, all of this moment of a sandbox, or of a snapshot; returns when the first one waits
    Create {
        /// A running sandbox, which goes on; or a snapshot's name, or a path with a slash
        source: String,
        /// The pool's name
        pool: String,
        /// How many wait
        #[arg(short = 'n', long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1000))]
        count: u64,
    },
    /// Make a sandbox of one that waits; another one takes its place
    Take {
        /// The pool
        pool: String,
        /// Name of the sandbox; a random one without
        child: Option<String>,
        #[command(flatten)]
        given: Given,
        #[command(flatten)]
        keep: Keep,
    },
    /// List the pools
    Ls,
    /// End pools; what was taken goes on
    Rm {
        /// The pools
        #[arg(required = true)]
        pools: Vec<String>,
    },
}
