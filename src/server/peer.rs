//! How peers are told apart before a request is authorized. An address identifies no client, so this bounds only what is
//! not yet authorized.

use std::net::IpAddr;

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
    }
}
