//! What benchmarks and the gateway's tests both need: a steady load that counts every loss.

pub mod load;
