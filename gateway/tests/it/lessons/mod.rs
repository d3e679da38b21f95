//! What an earlier gateway got wrong, each by its number: the fault stands in the comment of the
//! test that would find it again. Other tests name further numbers; that none is forgotten is
//! checked in `xtask/tests/it/lessons.rs`.

mod cache;
mod hosts;
mod identity;
mod life;
mod smuggling;
mod spy;
mod streams;
mod tls;
