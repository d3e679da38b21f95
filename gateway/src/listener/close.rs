//! Ends connections that nobody serves.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Sends `last`, ends our side and reads the client's rest for a moment.
///
/// Closing a socket with unread data resets the connection, and the reset
/// overtakes what was sent: the client would lose the answer.
pub(super) async fn close(mut stream: TcpStream, last: &[u8]) {
    let farewell = async {
        stream.write_all(last).await?;
        stream.shutdown().await?;
        for _ in 0..DISCARD_READS {
            if discard(&mut stream).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    // Whatever happens, it is closed after this.
    let _ = timeout(FAREWELL, farewell).await;
}

/// Reads and forgets. While it waits it holds no buffer.
async fn discard(stream: &mut TcpStream) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut scratch = [const { MaybeUninit::uninit() }; 4096];
        let mut read = ReadBuf::uninit(&mut scratch);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
        Poll::Ready(Ok(read.filled().len()))
    })
    .await
}

/// How long a client may take to notice.
const FAREWELL: Duration = Duration::from_millis(500);

/// Up to 256 KiB, or more than a client sends without looking.
const DISCARD_READS: usize = 64;
