//! The parts of an HTTP server that both roles use: authorization, connections, refused requests, signals, and the
//! drain (on SIGTERM, [`shutdown`] receives the signal and [`drain`] ends the roles in order). It knows neither role.

pub mod auth;
pub mod caller;
pub mod connection;
pub mod drain;
pub mod refused;
pub mod request_log;
pub mod shutdown;
