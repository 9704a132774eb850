//! The socket between backend and subreaper: a packet is one message, with descriptors where a shim gets them.

use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    cmsg_space,
    io::{Errno, retry_on_intr},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Serialize, de::DeserializeOwned};

use crate::backend::shim::protocol::Numbered;

/// The most descriptors in a packet: the shim's socket and the command's output, error and input.
const MAX_DESCRIPTORS: usize = 4;

/// The longest message, in bytes.
const MAX_MESSAGE: usize = 1024;

/// The result of a look for a packet.
pub(super) enum Received<T> {
    Message(Numbered<T>, Vec<OwnedFd>),
    /// There is no packet, or it is not a message.
    Nothing,
    /// The other side is gone.
    End,
}

/// Sends a message without waiting. Returns false if the socket is full, which it is after some hundred messages that the
/// other side has not read (net.core.wmem_default).
///
/// # Errors
///
/// The other side is gone, or the kernel does not take these descriptors.
pub(super) fn send_now<T: Serialize>(
    socket: &OwnedFd,
    message: &Numbered<T>,
    descriptors: &[OwnedFd],
) -> io::Result<bool> {
    match send_with(socket, message, descriptors, SendFlags::DONTWAIT) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends a message without descriptors, and waits until the socket takes it.
///
/// # Errors
///
/// The other side is gone.
pub(super) fn send<T: Serialize>(socket: &OwnedFd, message: &Numbered<T>) -> io::Result<()> {
    send_with(socket, message, &[], SendFlags::empty())
}

fn send_with<T: Serialize>(
    socket: &OwnedFd,
    message: &Numbered<T>,
    descriptors: &[OwnedFd],
    flags: SendFlags,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("no room for the descriptors of a shim"));
    }
    let parts = [IoSlice::new(&bytes)];
    retry_on_intr(|| sendmsg(socket, &parts, &mut ancillary, flags | SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives a message without waiting.
pub(super) fn receive<T: DeserializeOwned>(socket: &OwnedFd) -> Received<T> {
    let mut bytes = [0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
        Ok(received) if received.bytes > 0 => received,
        Err(Errno::INTR | Errno::AGAIN) => return Received::Nothing,
        Ok(_) | Err(_) => return Received::End,
    };
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        // Some did not fit under the limit of descriptors. A shim needs all of them or none.
        descriptors.clear();
    }
    match serde_json::from_slice(&bytes[..received.bytes]) {
        Ok(message) => Received::Message(message, descriptors),
        Err(_) => Received::Nothing,
    }
}
