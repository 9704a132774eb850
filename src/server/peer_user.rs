//! The user at the other end of a local TCP connection, as the kernel's socket diagnosis knows it (sock_diag(7)).
//!
//! [`keep`] asks once for each new connection: one exact look-up of the peer's socket, no list of sockets. The kernel
//! answers while the request is sent, so this takes some microseconds and does not block. `owner` reads the answer.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::LazyLock,
};

use actix_web::{dev::Extensions, rt::net};
use netlink_packet_core::{
    ErrorBuffer, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, Parseable,
};
use netlink_packet_sock_diag::{
    SOCK_DIAG_BY_FAMILY, SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{SOCK_DIAG, SocketAddrNetlink},
    recv, sendto, socket_with,
};

/// The cookie of a look-up that names a connection by its addresses only (INET_DIAG_NOCOOKIE).
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// The longest answer that is read, in bytes. One socket takes less than 200.
const MAX_ANSWER: usize = 4096;

/// The user of a connection's peer. It belongs to the connection's data.
#[derive(Clone, Debug)]
pub struct PeerUser(Result<u32, String>);

impl PeerUser {
    /// The user's number, or why it is not known.
    pub fn uid(&self) -> Result<u32, &str> {
        self.0.as_ref().copied().map_err(String::as_str)
    }
}

/// Why the user of a connection is not known.
#[derive(Debug, thiserror::Error)]
pub enum UnknownPeer {
    /// The peer has closed its socket. What is left of the connection belongs to no process, and the kernel reports
    /// user 0 for it.
    #[error("its peer has closed the connection")]
    Gone,
    /// The user has no number in the user namespace of this process. The kernel reports the same number for all of
    /// these.
    #[error("it is a user of another user namespace, {0} here")]
    Unmapped(u32),
    /// There is no answer.
    #[error("the kernel's sock_diag cannot be asked: {0}")]
    Failed(#[source] io::Error),
}

/// Keeps the user of a new connection in its data.
pub fn keep(stream: &net::TcpStream, data: &mut Extensions) {
    let found = stream.peer_addr().and_then(|peer| Ok((peer, stream.local_addr()?)));
    let user = found.map_err(UnknownPeer::Failed).and_then(|(peer, local)| user_of(peer, local));
    data.insert(PeerUser(user.map_err(|error| error.to_string())));
}

/// Finds the user of a connection of this process to itself, through this loopback address.
///
/// # Errors
/// The kernel does not tell the users of connections.
pub fn check(address: IpAddr) -> Result<(), UnknownPeer> {
    let connect = || {
        let listener = TcpListener::bind((address, 0))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        Ok((stream.local_addr()?, stream.peer_addr()?, stream, listener))
    };
    let (peer, local, _stream, _listener) = connect().map_err(UnknownPeer::Failed)?;
    user_of(peer, local).map(drop)
}

/// The user that owns the peer's socket of a connection whose socket here has the address `local`.
fn user_of(peer: SocketAddr, local: SocketAddr) -> Result<u32, UnknownPeer> {
    let id = socket_id(peer, local);
    let answer = ask(&id).map_err(UnknownPeer::Failed)?;
    owner(&answer, &id, *OVERFLOW_UID)
}

/// The peer's socket. A connection of IPv4 over sockets of IPv6 is looked up as one of IPv4.
fn socket_id(peer: SocketAddr, local: SocketAddr) -> SocketId {
    SocketId {
        source_port: peer.port(),
        destination_port: local.port(),
        source_address: peer.ip().to_canonical(),
        destination_address: local.ip().to_canonical(),
        interface_id: 0,
        cookie: NO_COOKIE,
    }
}

/// Asks the kernel about one socket.
fn ask(id: &SocketId) -> io::Result<Vec<u8>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(SOCK_DIAG))?;
    sendto(&socket, &request(id), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = vec![0; MAX_ANSWER];
    let (n_bytes, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    answer.truncate(n_bytes);
    Ok(answer)
}

fn request(id: &SocketId) -> Vec<u8> {
    let request = InetRequest {
        family: if id.source_address.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: id.clone(),
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let payload = NetlinkPayload::from(SockDiagMessage::InetRequest(request));
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The owner of the socket in an answer. `overflow` is the number that stands for users without one.
///
/// An answer counts only if it is about the socket that was asked for, because the kernel also finds a listener with
/// the same port, and only if that has an inode: a socket that its process has closed has none, and its user is
/// reported as 0, as if it were root's.
fn owner(answer: &[u8], id: &SocketId, overflow: Option<u32>) -> Result<u32, UnknownPeer> {
    let malformed = |error| UnknownPeer::Failed(io::Error::new(io::ErrorKind::InvalidData, error));
    let message = NetlinkBuffer::new_checked(answer).map_err(malformed)?;
    match message.message_type() {
        NLMSG_ERROR => {
            let code = ErrorBuffer::new_checked(message.payload()).map_err(malformed)?.code();
            match io::Error::from_raw_os_error(code.map_or(0, |code| code.get().saturating_neg())) {
                error if error.kind() == io::ErrorKind::NotFound => Err(UnknownPeer::Gone),
                error => Err(UnknownPeer::Failed(error)),
            }
        }
        SOCK_DIAG_BY_FAMILY => {
            let found = InetResponseHeader::parse(message.payload()).map_err(malformed)?;
            match found.uid {
                _ if found.inode == 0 || !is_same(&found.socket_id, id) => Err(UnknownPeer::Gone),
                uid if Some(uid) == overflow => Err(UnknownPeer::Unmapped(uid)),
                uid => Ok(uid),
            }
        }
        kind => Err(UnknownPeer::Failed(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of the unknown type {kind}"),
        ))),
    }
}

fn is_same(found: &SocketId, asked: &SocketId) -> bool {
    let ends = |id: &SocketId| {
        let (source, destination) = (id.source_address.to_canonical(), id.destination_address.to_canonical());
        (source, id.source_port, destination, id.destination_port)
    };
    ends(found) == ends(asked)
}

/// The number that the kernel reports for users without a number in the user namespace of this process. `None` if every
/// user has one, so that this number is a user like any other.
static OVERFLOW_UID: LazyLock<Option<u32>> = LazyLock::new(|| {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid").ok().and_then(|text| text.trim().parse().ok());
    // 65534 is the kernel's default.
    (!maps_all(&map)).then(|| overflow.unwrap_or(65_534))
});

/// Whether a user namespace with this map (user_namespaces(7)) has a number for every user.
fn maps_all(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    fn id() -> SocketId {
        socket_id("127.0.0.1:40000".parse().unwrap(), "127.0.0.1:8003".parse().unwrap())
    }

    fn answer(message_type: u16, payload: &[u8]) -> Vec<u8> {
        let length = 16 + payload.len();
        let mut header = NetlinkHeader::default();
        header.length = u32::try_from(length).unwrap();
        header.message_type = message_type;
        let mut bytes = vec![0; length];
        header.emit(&mut bytes[..16]);
        bytes[16..].copy_from_slice(payload);
        bytes
    }

    fn socket(state: u8, uid: u32, inode: u32, socket_id: SocketId) -> Vec<u8> {
        let family = if socket_id.source_address.is_ipv4() { AF_INET } else { AF_INET6 };
        let found =
            InetResponseHeader { family, state, timer: None, socket_id, recv_queue: 0, send_queue: 0, uid, inode };
        let mut payload = vec![0; found.buffer_len()];
        found.emit(&mut payload);
        answer(SOCK_DIAG_BY_FAMILY, &payload)
    }

    #[test]
    fn only_a_socket_of_a_process_has_an_owner() {
        const ESTABLISHED: u8 = 1;
        const FIN_WAIT2: u8 = 5;
        const LISTEN: u8 = 10;
        let listener = SocketId { destination_port: 0, ..id() };
        let mapped = SocketId {
            source_address: "::ffff:127.0.0.1".parse().unwrap(),
            destination_address: "::ffff:127.0.0.1".parse().unwrap(),
            ..id()
        };
        for (answer, uid) in [
            (socket(ESTABLISHED, 1000, 77, id()), Ok(1000)),
            (socket(ESTABLISHED, 0, 77, id()), Ok(0)),
            (socket(FIN_WAIT2, 1000, 77, id()), Ok(1000)),
            (socket(ESTABLISHED, 1000, 77, mapped), Ok(1000)),
            // The peer has closed, or exited.
            (socket(FIN_WAIT2, 0, 0, id()), Err("its peer has closed the connection")),
            (socket(LISTEN, 0, 78, listener), Err("its peer has closed the connection")),
            (answer(NLMSG_ERROR, &(-2i32).to_ne_bytes()), Err("its peer has closed the connection")),
            (socket(ESTABLISHED, 65_534, 77, id()), Err("it is a user of another user namespace, 65534 here")),
        ] {
            let owner = owner(&answer, &id(), Some(65_534));
            assert_eq!(owner.map_err(|error| error.to_string()), uid.map_err(str::to_owned), "{answer:?}");
        }
        assert_eq!(owner(&socket(ESTABLISHED, 65_534, 77, id()), &id(), None).unwrap(), 65_534, "all users are mapped");
    }

    #[test]
    fn a_malformed_answer_is_an_error() {
        let whole = socket(1, 0, 77, id());
        for length in 0..whole.len() {
            assert!(owner(&whole[..length], &id(), None).is_err(), "{length}");
        }
        for (kind, payload) in [(3, &[0; 72][..]), (NLMSG_ERROR, &[0; 4]), (SOCK_DIAG_BY_FAMILY, &[0; 72])] {
            assert!(owner(&answer(kind, payload), &id(), None).is_err(), "{kind}");
        }
    }

    #[test]
    fn only_the_first_user_namespace_maps_all_users() {
        assert!(maps_all("         0          0 4294967295\n"));
        for partial in ["", "0 1000 1", "0 100000 65536\n", "0 0 4294967295\n1 1 1"] {
            assert!(!maps_all(partial), "{partial}");
        }
    }

    #[test]
    fn the_user_of_a_connection_is_found_until_its_peer_closes() {
        let own = rustix::process::geteuid().as_raw();
        for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            let local = accepted.local_addr().unwrap();
            assert_eq!(user_of(peer, local).unwrap(), own, "{address}");
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(user_of(peer, local).unwrap(), own, "{address}: the peer may still read");
            drop(stream);
            assert!(matches!(user_of(peer, local), Err(UnknownPeer::Gone)), "{address}");
            check(address.parse().unwrap()).unwrap();
        }
    }
}
