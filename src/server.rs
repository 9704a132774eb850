//! The parts of an HTTP server that both roles use: authorization, connections and their bounds, request bodies, refused
//! requests, signals, and the drain (on SIGTERM, [`shutdown`] receives the signal and [`drain`] ends the roles in
//! order). It knows neither role.

pub mod admission;
pub mod auth;
pub mod authentication;
pub mod body;
pub mod caller;
pub mod connection;
pub mod download;
pub mod drain;
pub mod failure;
pub mod flush;
pub mod guess_limit;
pub mod listen;
pub mod local_users;
pub mod peer_user;
pub mod peers;
pub mod refused;
pub mod request_log;
pub mod secret;
pub mod secret_file;
pub mod shutdown;
pub mod socket;
pub mod tokens;
pub mod turned_away;
