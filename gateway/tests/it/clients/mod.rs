//! Real clients and servers through the gateway: curl, nghttp2, gRPC, WebSocket libraries, slow
//! attackers, and raw sockets for what no library can be made to say.

mod attackers;
mod curl;
mod informational;
mod large;
mod nghttp;
mod raw;
mod websocket;
