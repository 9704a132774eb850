//! How peers are told apart by their addresses. An address identifies no client, so this bounds only what is not yet
//! authorized, the lines of a log, and sessions where an operator asks for it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The peers that count as one: an IPv4 address, or an IPv6 network of 64 bits, because one machine usually has all of
/// such a network.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum PeerBlock {
    /// An IPv4 address, also one that is mapped into IPv6.
    V4(u32),
    /// The first 64 bits of an IPv6 address.
    V6(u64),
    /// The peer has no address any more.
    Unknown,
}

impl From<Option<IpAddr>> for PeerBlock {
    fn from(address: Option<IpAddr>) -> Self {
        match address.map(|address| address.to_canonical()) {
            Some(IpAddr::V4(address)) => PeerBlock::V4(address.to_bits()),
            Some(IpAddr::V6(address)) => PeerBlock::V6((address.to_bits() >> 64) as u64),
            None => PeerBlock::Unknown,
        }
    }
}

/// An address, or a network such as `2001:db8::/64`.
impl fmt::Display for PeerBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerBlock::V4(address) => Ipv4Addr::from_bits(*address).fmt(f),
            // The only peer in the network ::/64 is the loopback address.
            PeerBlock::V6(0) => Ipv6Addr::LOCALHOST.fmt(f),
            PeerBlock::V6(network) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(*network) << 64)),
            PeerBlock::Unknown => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_an_ipv4_address_or_an_ipv6_network() {
        let block = |text: &str| PeerBlock::from(Some(text.parse::<IpAddr>().unwrap()));
        assert_eq!(block("192.0.2.7"), block("::ffff:192.0.2.7"));
        assert_ne!(block("192.0.2.7"), block("192.0.2.8"));
        assert_eq!(block("2001:db8::1"), block("2001:db8::ffff:1"));
        assert_ne!(block("2001:db8::1"), block("2001:db8:0:1::1"));
        assert_ne!(block("::1"), PeerBlock::from(None));
        for (text, shown) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("::1", "::1"),
            ("2001:db8::7", "2001:db8::/64"),
        ] {
            assert_eq!(block(text).to_string(), shown);
        }
    }
}
