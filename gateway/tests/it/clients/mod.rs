//! Real clients and servers through the gateway: curl, nghttp2, gRPC, WebSocket libraries, slow
//! attackers, and raw sockets for what no library can be made to say.

mod attackers;
mod curl;
mod grpc;
mod informational;
mod large;
mod nghttp;
mod nghttpd;
mod raw;
mod websocket;
