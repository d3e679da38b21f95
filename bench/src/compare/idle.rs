//! TLS connections that have asked once and then say nothing: what memory each holds.

use anyhow::{Result, bail};

use super::client::Asker;
use super::measure::Common;
use super::processes::Tree;

/// Connections before the first look, so that what is set up once is not counted.
const WARM_UP: usize = 100;

/// Opens connections and looks at the proxy's memory before and after.
pub(super) async fn run(common: &Common, connections: usize) -> Result<String> {
    let target = common.target(false)?;
    let open = async |count: usize| -> Result<Vec<Asker>> {
        let mut askers = Vec::with_capacity(count);
        for _ in 0..count {
            let mut asker = Asker::connect(&target, "/1k", 1024).await?;
            asker.ask_in_time().await?;
            askers.push(asker);
        }
        Ok(askers)
    };
    let warm = open(WARM_UP).await?;
    let tree = Tree::of(common.pid)?;
    let before = tree.memory_kib()?;
    let mut idle = open(connections).await?;
    let after = tree.memory_kib()?;
    // All are alive, the oldest too.
    for asker in idle.iter_mut().step_by(connections.div_ceil(20).max(1)) {
        asker.ask_in_time().await?;
    }
    if warm.len() != WARM_UP {
        bail!("the warm-up lost connections");
    }
    let each = after.saturating_sub(before) as f64 / connections as f64;
    Ok(format!(
        "{{\"kib_per_connection\":{each:.2},\"before_kib\":{before},\"after_kib\":{after}}}"
    ))
}
