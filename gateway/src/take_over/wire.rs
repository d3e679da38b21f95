//! Words and descriptors on the socket between two gateways.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// Descriptors of one message; Linux takes 253.
const SOCKETS_PER_MESSAGE: usize = 64;

/// Longest word.
const WORD_MAX: usize = 64;

/// Longest description of the sockets: some ten bytes for each.
const OFFER_MAX: usize = 1 << 20;

/// What is sent before the descriptors.
#[derive(Debug, Deserialize, Serialize)]
struct Offer {
    /// One per descriptor, in their order.
    roles: Vec<String>,
}

/// Sends a word.
pub(super) async fn say(stream: &mut UnixStream, word: &str) -> io::Result<()> {
    stream.write_all(format!("{word}\n").as_bytes()).await
}

/// The next word. Not cancel safe: what was read of it is lost.
pub(super) async fn hear(stream: &mut UnixStream) -> io::Result<String> {
    let mut word = Vec::new();
    // Byte by byte: what follows the word is not ours to read.
    loop {
        match stream.read_u8().await? {
            b'\n' => return String::from_utf8(word).map_err(io::Error::other),
            _ if word.len() == WORD_MAX => return Err(io::ErrorKind::InvalidData.into()),
            byte => word.push(byte),
        }
    }
}

/// Sends the sockets: the length and text of what they are, then them, with a byte for each
/// message of them.
pub(super) async fn send(
    stream: &UnixStream,
    roles: Vec<String>,
    sockets: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let offer = serde_json::to_vec(&Offer { roles })?;
    let length = u32::try_from(offer.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(offer);
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let sent = send_some(stream, rest, &[]).await?;
        rest = rest.get(sent..).unwrap_or_default();
    }
    for sockets in sockets.chunks(SOCKETS_PER_MESSAGE) {
        send_some(stream, b".", sockets).await?;
    }
    Ok(())
}

async fn send_some(
    stream: &UnixStream,
    bytes: &[u8],
    sockets: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let send = || {
        let mut space =
            [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(SOCKETS_PER_MESSAGE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let sent = sendmsg(
            stream,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        );
        Ok(sent?)
    };
    stream.async_io(Interest::WRITABLE, send).await
}

/// Receives what [`send`] sent.
pub(super) async fn receive(stream: &UnixStream) -> io::Result<(Vec<String>, Vec<OwnedFd>)> {
    let (mut bytes, mut sockets) = (Vec::new(), Vec::new());
    loop {
        if let Some((offer, messages)) = whole(&bytes)? {
            let expected = offer.roles.len();
            if messages >= expected.div_ceil(SOCKETS_PER_MESSAGE) {
                if sockets.len() != expected {
                    // The system drops descriptors that this process has no room for.
                    return Err(io::Error::other(format!(
                        "{} of {expected} sockets arrived: is the limit of open files too low?",
                        sockets.len()
                    )));
                }
                return Ok((offer.roles, sockets));
            }
        }
        if receive_some(stream, &mut bytes, &mut sockets).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The offer, once it is whole, and how many bytes have come after it.
fn whole(bytes: &[u8]) -> io::Result<Option<(Offer, usize)>> {
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > OFFER_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    match rest.split_at_checked(length) {
        Some((offer, rest)) => Ok(Some((serde_json::from_slice(offer)?, rest.len()))),
        None => Ok(None),
    }
}

async fn receive_some(
    stream: &UnixStream,
    bytes: &mut Vec<u8>,
    sockets: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let receive = || {
        let mut space =
            [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(SOCKETS_PER_MESSAGE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; 4096];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut control,
            flags,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                sockets.extend(rights);
            }
        }
        bytes.extend_from_slice(buffer.get(..received.bytes).unwrap_or_default());
        Ok(received.bytes)
    };
    stream.async_io(Interest::READABLE, receive).await
}
