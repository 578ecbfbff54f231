//! What the host says on the kernel's command line.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// The agent's part of `/proc/cmdline`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmdline {
    /// Guest-physical address of the region.
    pub address: u64,
    /// Length of the region in bytes.
    pub length: u64,
    /// The disk with the user's file system; without one it is the image's own.
    pub root: Option<PathBuf>,
    /// The network, if there is one.
    pub network: Option<Network>,
    /// Test: acknowledge identities without repairing anything.
    pub skip_repair: bool,
    /// Test: never answer a quiesce.
    pub no_quiesce: bool,
    /// Test: claim to speak the protocol's next version.
    pub other_protocol: bool,
}

/// The guest's place in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Its own address.
    pub address: Ipv4Addr,
    /// Bits of the address that all of the network have in common, at most 32.
    pub prefix: u8,
    /// The way out.
    pub gateway: Ipv4Addr,
    /// Who knows names.
    pub resolver: Ipv4Addr,
}

impl Network {
    /// The network's mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0))
    }

    fn parse(value: &str) -> Option<Self> {
        let mut parts = value.split(',');
        let (address, prefix) = parts.next()?.split_once('/')?;
        let prefix = u8::try_from(number(prefix)?).ok().filter(|prefix| *prefix <= 32)?;
        let mut next = || parts.next()?.parse().ok();
        let (gateway, resolver) = (next()?, next()?);
        let network = Self { address: address.parse().ok()?, prefix, gateway, resolver };
        parts.next().is_none().then_some(network)
    }
}

/// A command line that the agent cannot work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// No region.
    #[error("the kernel command line lacks throughline.region=ADDRESS,LENGTH; boot this image with Throughline")]
    NoRegion,
    /// A region that is none.
    #[error(
        "throughline.region={0:?} on the kernel command line is not ADDRESS,LENGTH (0x… or decimal), both above zero"
    )]
    BadRegion(String),
    /// A disk that is none.
    #[error("throughline.root={0:?} on the kernel command line is not a device, such as /dev/vda")]
    BadRoot(String),
    /// A network that is none.
    #[error(
        "throughline.net={0:?} on the kernel command line is not ADDRESS/PREFIX,GATEWAY,RESOLVER, such as 10.0.2.15/24,10.0.2.2,10.0.2.3"
    )]
    BadNetwork(String),
    /// An unknown test switch.
    #[error(
        "throughline.test={0:?} on the kernel command line is unknown; skip-repair, no-quiesce and other-protocol exist"
    )]
    BadTest(String),
}

impl Cmdline {
    /// Finds the agent's words among the kernel's; the last of several counts.
    pub fn parse(text: &str) -> Result<Self, CmdlineError> {
        let (mut region, mut root, mut network) = (None, None, None);
        let (mut skip_repair, mut no_quiesce, mut other_protocol) = (false, false, false);
        for word in text.split_ascii_whitespace() {
            if let Some(value) = word.strip_prefix("throughline.region=") {
                region = Some(parse_region(value)?);
            } else if let Some(value) = word.strip_prefix("throughline.root=") {
                let device = Some(PathBuf::from(value)).filter(|device| device.parent() == Some(Path::new("/dev")));
                root = Some(device.ok_or_else(|| CmdlineError::BadRoot(value.to_owned()))?);
            } else if let Some(value) = word.strip_prefix("throughline.net=") {
                let parsed = Network::parse(value);
                network = Some(parsed.ok_or_else(|| CmdlineError::BadNetwork(value.to_owned()))?);
            } else if let Some(value) = word.strip_prefix("throughline.test=") {
                for switch in value.split(',') {
                    match switch {
                        "skip-repair" => skip_repair = true,
                        "no-quiesce" => no_quiesce = true,
                        "other-protocol" => other_protocol = true,
                        _ => return Err(CmdlineError::BadTest(switch.to_owned())),
                    }
                }
            }
        }
        let (address, length) = region.ok_or(CmdlineError::NoRegion)?;
        Ok(Self { address, length, root, network, skip_repair, no_quiesce, other_protocol })
    }
}

fn parse_region(value: &str) -> Result<(u64, u64), CmdlineError> {
    value
        .split_once(',')
        .and_then(|(address, length)| Some((number(address)?, number(length)?)))
        .filter(|&(address, length)| address > 0 && length > 0 && address.checked_add(length).is_some())
        .ok_or_else(|| CmdlineError::BadRegion(value.to_owned()))
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        // from_str_radix accepts a sign, which no address has.
        Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None if text.starts_with('+') => None,
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_its_words_among_the_kernels() {
        let text = "console=ttyS0 panic=-1 throughline.region=0x140000000,67108864 quiet\n";
        let expected = Cmdline {
            address: 0x1_4000_0000,
            length: 64 << 20,
            root: None,
            network: None,
            skip_repair: false,
            no_quiesce: false,
            other_protocol: false,
        };
        assert_eq!(Cmdline::parse(text), Ok(expected.clone()));
        let disk = Cmdline::parse(&format!("{text} throughline.root=/dev/vda"));
        assert_eq!(disk, Ok(Cmdline { root: Some("/dev/vda".into()), ..expected.clone() }));
        let net = Cmdline::parse(&format!("{text} throughline.net=10.0.2.15/24,10.0.2.2,10.0.2.3"));
        let [address, gateway, resolver] = [15, 2, 3].map(|last| Ipv4Addr::new(10, 0, 2, last));
        let network = Network { address, prefix: 24, gateway, resolver };
        assert_eq!(net, Ok(Cmdline { network: Some(network), ..expected.clone() }));
        assert_eq!(network.mask(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(Network { prefix: 0, ..network }.mask(), Ipv4Addr::UNSPECIFIED);
        let tests = format!("{text} throughline.test=skip-repair throughline.test=no-quiesce,other-protocol");
        assert_eq!(
            Cmdline::parse(&tests),
            Ok(Cmdline { skip_repair: true, no_quiesce: true, other_protocol: true, ..expected })
        );
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(Cmdline::parse("quiet"), Err(CmdlineError::NoRegion));
        for bad in ["", "1", "0,1", "1,0", "x,1", "0x1,+2", "0x+1,2", "0xffffffffffffffff,2", "1,2,3"] {
            let text = format!("throughline.region={bad}");
            assert_eq!(Cmdline::parse(&text), Err(CmdlineError::BadRegion(bad.to_owned())));
        }
        for bad in ["", "vda", "/dev", "/dev/../vda"] {
            let text = format!("throughline.region=1,1 throughline.root={bad}");
            assert_eq!(Cmdline::parse(&text), Err(CmdlineError::BadRoot(bad.to_owned())));
        }
        for bad in [
            "",
            "10.0.2.15",
            "10.0.2.15/33,10.0.2.2,10.0.2.3",
            "10.0.2.15/24,10.0.2.2",
            "::1/64,::2,::3",
            "1.2.3.4/8,1.2.3.1,1.2.3.1,x",
        ] {
            let text = format!("throughline.region=1,1 throughline.net={bad}");
            assert_eq!(Cmdline::parse(&text), Err(CmdlineError::BadNetwork(bad.to_owned())));
        }
        assert_eq!(Cmdline::parse("throughline.test=other"), Err(CmdlineError::BadTest("other".to_owned())));
    }
}
