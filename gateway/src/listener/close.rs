//! Ends connections that nobody serves.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
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
        let mut rest = [0; 4096];
        for _ in 0..DISCARD_READS {
            if stream.read(&mut rest).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    // Whatever happens, it is closed after this.
    let _ = timeout(FAREWELL, farewell).await;
}

/// How long a client may take to notice.
const FAREWELL: Duration = Duration::from_millis(500);

/// Up to 256 KiB, or more than a client sends without looking.
const DISCARD_READS: usize = 64;
