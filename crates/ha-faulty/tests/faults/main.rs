//! Every fault, on a real token, through the library as it is built: from the script, and from the socket.
#![allow(missing_docs, clippy::unwrap_used)]

mod bench;
mod calls;
mod standing;
mod surroundings;
