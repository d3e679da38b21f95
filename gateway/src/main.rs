//! `edd-gateway`.

fn main() {}
