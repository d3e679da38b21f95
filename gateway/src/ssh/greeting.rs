//! What a client offers, heard before anything is offered to it.
//!
//! The client's order of ciphers decides (RFC 4253, section 7.1), and OpenSSH begins with ChaCha20
//! on every machine. Where the processor has AES, that takes both ends twice the time for each
//! byte. A server decides only by what it does not offer, so it has to know what the client has.
//! Our identification goes out at once, and our key exchange waits a moment for the client's: what
//! has AES-GCM is offered nothing else. Whoever is further away than that, or waits for us, gets
//! the whole offer, and its own order counts.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};

use super::settings::SERVER_ID;

/// How long the client's key exchange is waited for behind its identification.
const PATIENCE: Duration = Duration::from_millis(10);

/// Longest identification, its line's end included (RFC 4253, section 4.2).
const ID_MAX: usize = 255;

/// Longest packet that has to be understood (RFC 4253, section 6.1); beyond it nothing is waited
/// for.
const PACKET_MAX: usize = 35_000;

/// What is asked of the socket at once: a key exchange and more.
const READ: usize = 4 << 10;

/// SSH_MSG_KEXINIT (RFC 4253, section 7.1).
const KEXINIT: u8 = 20;

/// Its random bytes.
const COOKIE_LEN: usize = 16;

/// The ciphers that are worth it.
const AES_GCM: [&[u8]; 2] = [b"aes256-gcm@openssh.com", b"aes128-gcm@openssh.com"];

/// What is known of a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Offer {
    /// It has AES-GCM, and would choose the same one both ways.
    AesGcm,
    /// It has not, or nobody knows.
    Other,
}

/// What has come so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Look {
    /// Not all of the identification.
    Identification,
    /// Not all of what the client offers.
    KeyExchange,
    /// Enough.
    Enough(Offer),
}

/// Sends our identification and hears what the client has. What was read belongs to whoever goes
/// on: `prefix`, which was read before, and what came here.
///
/// Waits for the client's identification without a limit of its own. Not cancellation safe: what
/// was read is lost.
///
/// # Errors
/// The connection is lost.
pub(super) async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    prefix: &Bytes,
) -> io::Result<(Bytes, Offer)> {
    stream.write_all(&identification()).await?;
    let mut bytes = BytesMut::with_capacity(READ.max(prefix.len()));
    bytes.extend_from_slice(prefix);
    let mut deadline = None;
    loop {
        let read = match look(&bytes) {
            Look::Enough(offer) => return Ok((bytes.freeze(), offer)),
            Look::Identification => Some(stream.read_buf(&mut bytes).await?),
            Look::KeyExchange => {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
                let read = timeout_at(deadline, stream.read_buf(&mut bytes)).await;
                read.ok().transpose()?
            }
        };
        // Its end is for whoever goes on to find.
        if matches!(read, None | Some(0)) {
            return Ok((bytes.freeze(), Offer::Other));
        }
    }
}

/// Our identification, with its line's end.
pub(super) fn identification() -> Bytes {
    Bytes::from(format!("{SERVER_ID}\r\n"))
}

/// Judges what a client has sent from its first byte on.
fn look(bytes: &[u8]) -> Look {
    let Some(end) = bytes.iter().take(ID_MAX).position(|byte| *byte == b'\n') else {
        let is_whole = bytes.len() >= ID_MAX;
        return if is_whole {
            Look::Enough(Offer::Other)
        } else {
            Look::Identification
        };
    };
    let (id, rest) = bytes.split_at(end + 1);
    if !id.starts_with(b"SSH-") {
        return Look::Enough(Offer::Other);
    }
    let Some((head, packet)) = rest.split_first_chunk::<4>() else {
        return Look::KeyExchange;
    };
    let len = u32::from_be_bytes(*head) as usize;
    if len > PACKET_MAX {
        return Look::Enough(Offer::Other);
    }
    match packet.get(..len) {
        None => Look::KeyExchange,
        Some(packet) if has_aes_gcm(packet).unwrap_or(false) => Look::Enough(Offer::AesGcm),
        Some(_) => Look::Enough(Offer::Other),
    }
}

/// Whether a packet offers it both ways; none: it is no key exchange.
///
/// The same one must come first both ways: russh, which looks at the first list alone, takes that
/// for both.
fn has_aes_gcm(packet: &[u8]) -> Option<bool> {
    let [_padding, KEXINIT, rest @ ..] = packet else {
        return None;
    };
    let mut rest = rest.get(COOKIE_LEN..)?;
    let mut list = || {
        let (len, text) = rest.split_first_chunk::<4>()?;
        let (list, behind) = text.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        rest = behind;
        Some(list)
    };
    let (_key_exchanges, _host_keys) = (list()?, list()?);
    let [out, back] = [list()?, list()?].map(|list| {
        let mut names = list.split(|byte| *byte == b',');
        names.find(|name| AES_GCM.contains(name))
    });
    Some(out.is_some() && out == back)
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    const ID: &[u8] = b"SSH-2.0-OpenSSH_9.2p1\r\n";

    /// What OpenSSH 9.2 has.
    const OPENSSH: &str = "chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,\
        aes128-gcm@openssh.com,aes256-gcm@openssh.com";

    /// The first that a client sends: identification, key exchange with these ciphers.
    fn first(out: &str, back: &str) -> Vec<u8> {
        let mut payload = vec![KEXINIT];
        payload.extend([7; COOKIE_LEN]);
        for list in [
            "curve25519-sha256",
            "ssh-ed25519",
            out,
            back,
            "",
            "",
            "none",
            "none",
            "",
            "",
        ] {
            payload.extend((list.len() as u32).to_be_bytes());
            payload.extend(list.as_bytes());
        }
        payload.extend([0; 5]);
        let padding = vec![0; 8];
        let len = 1 + payload.len() + padding.len();
        let head = [&(len as u32).to_be_bytes()[..], &[8]].concat();
        [ID, &head, &payload, &padding].concat()
    }

    #[test]
    fn aes_gcm_counts_where_it_would_be_the_same_both_ways() {
        for (out, back, offer) in [
            (OPENSSH, OPENSSH, Offer::AesGcm),
            (
                "chacha20-poly1305@openssh.com,aes256-gcm@openssh.com",
                "chacha20-poly1305@openssh.com,aes128-gcm@openssh.com",
                Offer::Other,
            ),
            (
                "aes128-ctr,aes256-gcm@openssh.com,aes128-gcm@openssh.com",
                "aes256-gcm@openssh.com",
                Offer::AesGcm,
            ),
            ("chacha20-poly1305@openssh.com", OPENSSH, Offer::Other),
            (OPENSSH, "aes256-ctr", Offer::Other),
            (
                "xaes256-gcm@openssh.com",
                "aes256-gcm@openssh.comx",
                Offer::Other,
            ),
            ("", "", Offer::Other),
        ] {
            assert_eq!(look(&first(out, back)), Look::Enough(offer), "{out} {back}");
        }
    }

    #[test]
    fn what_has_not_all_come_is_waited_for() {
        let first = first(OPENSSH, OPENSSH);
        for len in 0..first.len() {
            let wanted = match len < ID.len() {
                true => Look::Identification,
                false => Look::KeyExchange,
            };
            assert_eq!(look(&first[..len]), wanted, "{len} bytes");
        }
        let more = [&first[..], b"and what follows"].concat();
        assert_eq!(look(&more), Look::Enough(Offer::AesGcm));
    }

    #[test]
    fn nothing_is_waited_for_in_vain_and_nothing_hostile_is_believed() {
        let other = Look::Enough(Offer::Other);
        assert_eq!(look(&[b'x'; ID_MAX]), other);
        assert_eq!(look(b"GET / HTTP/1.1\r\n"), other);
        assert_eq!(
            look(&[ID, &[0xff; 64]].concat()),
            other,
            "a packet without end"
        );
        assert_eq!(
            look(&[ID, &[0; 4]].concat()),
            other,
            "a packet without anything"
        );
        let good = first(OPENSSH, OPENSSH);
        let lists = ID.len() + 4 + 2 + COOKIE_LEN;
        for at in lists..good.len() {
            let mut bad = good.clone();
            // Lists that end beyond the packet, or names that are others.
            bad[at] = 0xff;
            assert!(matches!(look(&bad), Look::Enough(_)));
        }
        let mut bad = good.clone();
        bad[lists] = 0xff;
        assert_eq!(look(&bad), other);
        let mut bad = good;
        bad[ID.len() + 5] = 21;
        assert_eq!(look(&bad), other, "not a key exchange");
    }

    #[tokio::test(start_paused = true)]
    async fn both_introduce_themselves_and_nothing_is_lost() {
        let first = first(OPENSSH, OPENSSH);
        for cut in [0, 4, ID.len(), first.len()] {
            let (mut client, mut ours) = duplex(1 << 16);
            client.write_all(&first[cut..]).await.unwrap();
            let prefix = Bytes::copy_from_slice(&first[..cut]);
            let (bytes, offer) = exchange(&mut ours, &prefix).await.unwrap();
            assert_eq!((&bytes[..], offer), (&first[..], Offer::AesGcm));
            let mut said = vec![0; identification().len()];
            client.read_exact(&mut said).await.unwrap();
            assert_eq!(said, identification());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_far_away_or_waits_for_us_is_not_waited_for() {
        let begin = Instant::now();
        let (mut client, mut ours) = duplex(1 << 16);
        client.write_all(ID).await.unwrap();
        let (bytes, offer) = exchange(&mut ours, &Bytes::new()).await.unwrap();
        assert_eq!((&bytes[..], offer), (ID, Offer::Other));
        assert_eq!(begin.elapsed(), PATIENCE);
        // A byte now and then does not make it longer.
        let dripping = async {
            for byte in first(OPENSSH, OPENSSH) {
                client.write_all(&[byte]).await.unwrap();
                tokio::time::sleep(PATIENCE / 4).await;
            }
        };
        let begin = Instant::now();
        let prefix = Bytes::from_static(ID);
        tokio::select! {
            done = exchange(&mut ours, &prefix) => assert_eq!(done.unwrap().1, Offer::Other),
            () = dripping => panic!("everything was waited for"),
        }
        assert!(begin.elapsed() <= PATIENCE);
    }

    #[tokio::test]
    async fn the_end_of_a_client_is_passed_on() {
        for sent in [&b""[..], b"SSH-", ID] {
            let (mut client, mut ours) = duplex(1 << 16);
            client.write_all(sent).await.unwrap();
            client.shutdown().await.unwrap();
            let (bytes, offer) = exchange(&mut ours, &Bytes::new()).await.unwrap();
            assert_eq!((&bytes[..], offer), (sent, Offer::Other));
        }
    }
}
