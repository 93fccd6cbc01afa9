//! Passing descriptors between processes over a Unix socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Returns two connected sockets that keep the boundaries of messages.
pub fn message_sockets() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends one byte with these descriptors, at most four.
pub fn send_fds(socket: impl AsFd, fds: &[BorrowedFd<'_>]) -> Result<()> {
    send_with_byte(socket, 0, fds)
}

/// Sends this byte with the descriptors.
pub fn send_with_byte(socket: impl AsFd, byte: u8, fds: &[BorrowedFd<'_>]) -> Result<()> {
    send_with_bytes(socket, &[byte], fds)
}

/// Sends one message with the descriptors.
pub fn send_with_bytes(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(|_| ())
}

/// Receives one message's descriptors. Fails at the end of the stream.
pub fn receive_fds(socket: impl AsFd) -> Result<Vec<OwnedFd>> {
    receive_with_byte(socket).map(|(fds, _)| fds)
}

/// Receives the next byte and the descriptors sent with it.
pub fn receive_with_byte(socket: impl AsFd) -> Result<(Vec<OwnedFd>, u8)> {
    let mut byte = [0u8; 1];
    receive_with_bytes(socket, &mut byte).map(|(fds, _)| (fds, byte[0]))
}

/// Receives the next bytes; returns the descriptors sent with them, and the number of bytes.
pub fn receive_with_bytes(socket: impl AsFd, bytes: &mut [u8]) -> Result<(Vec<OwnedFd>, usize)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if message.bytes == 0 {
        return Err(Errno::PIPE);
    }
    let rights =
        control.drain().filter_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None });
    Ok((rights.flatten().collect(), message.bytes))
}
