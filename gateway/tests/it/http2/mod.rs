//! HTTP/2 by raw frames, by the h2 crate, and by nothing that forgives.

mod floods;
pub(crate) mod frames;
mod limits;
mod requests;
mod tunnel;
mod upstream_frames;
mod upstreams;
